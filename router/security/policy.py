"""What every route needs. A route that is not here is for those who may do everything."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from router.security.access import Access, Level


class Scope(Enum):
    OPEN = auto()
    """For everybody, with or without a key."""
    ANY = auto()
    """For every key; what is answered depends on its access."""
    COLLECTION = auto()
    """For those with access to the collection in the path."""
    GLOBAL = auto()


class Need(NamedTuple):
    scope: Scope
    level: Level = Level.READ


class Route(NamedTuple):
    """A request's way as the table has it."""

    name: str
    need: Need
    collection: str | None
    """As the path names it."""

    @property
    def writes(self) -> bool:
        return self.need.level > Level.READ

    def check(self, access: Access) -> None:
        """Raises Forbidden."""
        match self.need.scope:
            case Scope.COLLECTION:
                assert self.collection is not None
                access.check(self.collection, self.need.level)
            case Scope.GLOBAL:
                access.check_everywhere(self.need.level)


_OPEN = Need(Scope.OPEN)
_ANY = Need(Scope.ANY)
_READ = Need(Scope.COLLECTION)
_POINTS = Need(Scope.COLLECTION, Level.POINTS)
_WRITE = Need(Scope.COLLECTION, Level.WRITE)
_MANAGE = Need(Scope.COLLECTION, Level.MANAGE)

# Qdrant's own table of access, and what Shoal has beside it. A bulk load and an export reach places
# outside of the collection with the service's own rights.
ROUTES = {
    "GET /": _OPEN,
    "GET /healthz": _OPEN,
    "GET /livez": _OPEN,
    "GET /readyz": _OPEN,
    "GET /metrics": Need(Scope.GLOBAL),
    "GET /telemetry": Need(Scope.GLOBAL),
    "GET /profile": Need(Scope.GLOBAL, Level.MANAGE),
    "GET /openapi.json": _ANY,
    "GET /docs": _ANY,
    "GET /docs/oauth2-redirect": _ANY,
    "HEAD /openapi.json": _ANY,
    "HEAD /docs": _ANY,
    "HEAD /docs/oauth2-redirect": _ANY,
    "GET /collections": _ANY,
    "GET /aliases": _ANY,
    "POST /collections/aliases": Need(Scope.GLOBAL, Level.MANAGE),
    "GET /collections/{name}": _READ,
    "PUT /collections/{name}": _MANAGE,
    "PATCH /collections/{name}": _MANAGE,
    "DELETE /collections/{name}": _MANAGE,
    "GET /collections/{name}/exists": _READ,
    "GET /collections/{name}/aliases": _READ,
    "PUT /collections/{name}/index": _WRITE,
    "DELETE /collections/{name}/index/{field}": _WRITE,
    "PUT /collections/{name}/points": _POINTS,
    "POST /collections/{name}/points": _READ,
    "GET /collections/{name}/points/{id}": _READ,
    "POST /collections/{name}/points/delete": _POINTS,
    "POST /collections/{name}/points/payload": _POINTS,
    "PUT /collections/{name}/points/payload": _POINTS,
    "POST /collections/{name}/points/payload/delete": _POINTS,
    "POST /collections/{name}/points/payload/clear": _POINTS,
    "PUT /collections/{name}/points/vectors": _POINTS,
    "POST /collections/{name}/points/vectors/delete": _POINTS,
    "POST /collections/{name}/points/batch": _POINTS,
    "POST /collections/{name}/points/scroll": _READ,
    "POST /collections/{name}/points/count": _READ,
    "POST /collections/{name}/points/query": _READ,
    "POST /collections/{name}/points/query/batch": _READ,
    "POST /collections/{name}/points/query/groups": _READ,
    "POST /collections/{name}/points/search": _READ,
    "POST /collections/{name}/points/search/batch": _READ,
    "POST /collections/{name}/points/search/matrix/pairs": _READ,
    "POST /collections/{name}/points/search/matrix/offsets": _READ,
    "POST /collections/{name}/facet": _READ,
    "POST /collections/{name}/snapshots": _WRITE,
    "GET /collections/{name}/snapshots": _READ,
    "GET /collections/{name}/snapshots/{snapshot}": _READ,
    "DELETE /collections/{name}/snapshots/{snapshot}": _WRITE,
    "PUT /collections/{name}/snapshots/recover": _MANAGE,
    "POST /collections/{name}/ingest": _MANAGE,
    "GET /collections/{name}/ingest": _READ,
    "GET /collections/{name}/ingest/{job_id}": _READ,
    "DELETE /collections/{name}/ingest/{job_id}": _WRITE,
    "POST /collections/{name}/export": _MANAGE,
    "GET /collections/{name}/export": _READ,
    "GET /collections/{name}/export/{job_id}": _READ,
    "DELETE /collections/{name}/export/{job_id}": _WRITE,
}

_COLLECTION = "/collections/{name}"
# By what differs between requests: the method, and what follows a collection's name. Routes with
# one more parameter have it last.
_ELSEWHERE = {route: need for route, need in ROUTES.items() if _COLLECTION not in route}
_BELOW = {
    (method, path.removeprefix(_COLLECTION)): f"{method} {path}"
    for method, _, path in (route.partition(" ") for route in ROUTES)
    if path.startswith(_COLLECTION)
}
_WITH_LAST = {
    (method, below[: below.rindex("/")]): route
    for (method, below), route in _BELOW.items()
    if below.endswith("}")
}


def find(method: str, path: str) -> Route | None:
    """The route that a request of that decoded path takes; None: no route is known to."""
    name = f"{method} {path}"
    if need := _ELSEWHERE.get(name):
        return Route(name, need, None)
    before, _, rest = path.partition("/collections/")
    collection, slash, below = rest.partition("/")
    if before or not collection:
        return None
    below = f"{slash}{below}"
    found = _BELOW.get((method, below))
    if found is None:
        parent, _, last = below.rpartition("/")
        found = _WITH_LAST.get((method, parent)) if last else None
    return None if found is None else Route(found, ROUTES[found], collection)
