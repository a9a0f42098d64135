"""What a request may do, once it is known whose it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from router.errors import Forbidden


class Level(IntEnum):
    """Each includes those below it."""

    READ = 1
    POINTS = 2
    """Changes points, with their payloads and vectors."""
    WRITE = 3
    """Changes what a collection has beside points: payload indexes, snapshots, jobs."""
    MANAGE = 4
    """Makes, changes and deletes collections and aliases, and leads data in and out of them."""


@dataclass(frozen=True)
class Access:
    """What the holder of a key or token may do. A collection is named as requests name it: who may
    use an alias may use nothing by the name of its collection, as in Qdrant."""

    level: Level | None
    """Everywhere; None: as ``collections`` say, and nothing else."""
    collections: Mapping[str, Level] = field(default_factory=dict)
    holder: str = "anonymous"
    """The kind of key, as the audit log tells it."""
    subject: str | None = None
    """What a token says of its holder."""

    def check_everywhere(self, level: Level) -> None:
        """Raises Forbidden."""
        if self.level is None:
            raise Forbidden("Global access is required")
        if self.level < level:
            raise Forbidden("Global manage access is required")

    def check(self, collection: str, level: Level) -> None:
        """Raises Forbidden where what is asked of the collection of that name needs more."""
        if self.level is not None:
            self.check_everywhere(level)
        elif collection not in self.collections:
            raise Forbidden(f"Access to collection {collection:.200} is required")
        elif level is Level.MANAGE:
            raise Forbidden("Manage access for this operation is required")
        elif self.collections[collection] < level:
            raise Forbidden(f"Write access to collection {collection:.200} is required")

    def sees(self, collection: str) -> bool:
        """Whether lists show the collection, or alias, of that name."""
        return self.level is not None or collection in self.collections


FULL = Access(Level.MANAGE)
