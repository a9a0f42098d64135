"""What may go wrong, as callers need to tell it apart. Each is one gRPC status on the wire."""


class ShoalError(Exception):
    """Base of every error that Shoal raises on purpose."""


class InvalidInput(ShoalError):
    """The caller's request can never succeed; the message names the field and what was expected."""


class NotFound(ShoalError):
    """The named collection, shard or object is not here."""


class AlreadyExists(ShoalError):
    """Something of that name is there already."""


class Overloaded(ShoalError):
    """A bounded queue or memory limit is full; nothing was written. Try again later."""


class Unavailable(ShoalError):
    """Not able to answer now (recovering, moving, store out of reach). Safe to try again."""


class Fenced(Unavailable):
    """Another writer has taken this shard over; this one acknowledges nothing more."""


class Corrupt(ShoalError):
    """Stored bytes do not match their checksum or format."""
