"""Where users may have the service read and write, with rights that are its own and not theirs."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path

from router.errors import Forbidden
from shard.errors import InvalidInput

_S3 = "s3://"
_GLOB = "*?["


class Locations:
    """Directories and ``s3://BUCKET/PREFIX``, and what is below them; None: everywhere.

    Raises InvalidInput for what is no such place.
    """

    def __init__(self, allowed: Sequence[str] | None) -> None:
        self.directories: list[str] | None = None
        """The local ones, without links: whoever reads there looks again."""
        self._prefixes: list[str] = []
        if allowed is None:
            return
        self.directories = []
        for place in allowed:
            if any(sign in place for sign in _GLOB) or ".." in place.split("/"):
                raise InvalidInput(f"--allow-location {place}: expected a place, without patterns")
            if place.startswith(_S3) and place != _S3:
                self._prefixes.append(f"{place.rstrip('/')}/")
            elif "://" not in place and place:
                self.directories.append(os.path.realpath(place))
            else:
                raise InvalidInput(
                    f"--allow-location {place}: expected a directory or s3://BUCKET/PREFIX"
                )

    def check(self, url: str, field: str) -> None:
        """Raises Forbidden where ``url``, which may be a pattern, leads elsewhere."""
        if self.directories is None:
            return
        if "\0" in url:
            raise InvalidInput(f"{field} {url!r:.200}: no place has such a name")
        if url.startswith(_S3):
            # What follows the prefix is not interpreted, nor may it be by who reads it.
            plain = not {".", "..", ""} & set(url[len(_S3) :].rstrip("/").split("/"))
            allowed = plain and any(f"{url.rstrip('/')}/".startswith(p) for p in self._prefixes)
        else:
            path = url.removeprefix("file://")
            while any(sign in path for sign in _GLOB):
                path = posixpath.dirname(path)
            plain = ".." not in url.split("/")
            allowed = plain and any(
                Path(os.path.realpath(path)).is_relative_to(one) for one in self.directories
            )
        if not allowed:
            raise Forbidden(f"{field} {url!r:.200}: it is not below an --allow-location")

    def open(self, path: str, field: str) -> BufferedReader:
        """The file, read only. Raises Forbidden, InvalidInput, OSError."""
        self.check(path, field)
        # Nothing is waited for: it may be a pipe.
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
        try:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidInput(f"{field}: {path!r:.200} is no file here")
            # Where it is that has been opened, whatever links lead to it by now.
            self.check(str(Path(f"/proc/self/fd/{file.fileno()}").readlink()), field)
        except BaseException:
            file.close()
            raise
        return file
