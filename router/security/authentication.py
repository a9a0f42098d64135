"""Whose a request is: keys, and tokens of Qdrant's form, as its headers have them."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import jwt
import msgspec

from router.errors import Forbidden, Unauthorized
from router.security.access import Access, Level
from router.security.settings import Security
from shard.errors import InvalidInput, NotFound
from shard.filter import Condition, Filter, Match, Value

Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

LEEWAY_SECONDS = 30
"""By which a token may be over: clocks differ."""
KEPT_TOKENS = 1_024
MAX_SUBJECT = 128
"""Characters of a subject that are told."""
_ALGORITHM = "HS256"
_MANAGER = Access(Level.MANAGE, holder="api key")
_ALT_MANAGER = Access(Level.MANAGE, holder="alt api key")
_READER = Access(Level.READ, holder="read-only api key")
_LEVELS = {"r": Level.READ, "prw": Level.POINTS, "rw": Level.WRITE, "m": Level.MANAGE}


class _CollectionAccess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    collection: str
    access: Literal["r", "rw", "prw"]


class _KeyValue(msgspec.Struct, frozen=True):
    key: str
    value: Value


class ValueExists(msgspec.Struct, frozen=True):
    """A token is good as long as there is a point with these values."""

    collection: str
    matches: list[_KeyValue]

    def filter(self) -> Filter:
        return Filter(
            must=[Condition(key=one.key, match=Match(value=one.value)) for one in self.matches]
        )


class _Claims(msgspec.Struct, frozen=True):
    exp: int | float | None = None
    access: Literal["r", "m"] | list[_CollectionAccess] = "m"
    value_exists: ValueExists | None = None
    subject: str | None = None
    sub: str | None = None


class _Token(msgspec.Struct, frozen=True):
    access: Access
    ends: float
    """Seconds since the epoch."""
    value_exists: ValueExists | None


class Authenticator:
    """Knows the holders of keys and tokens by what they send.

    ``holds`` says whether there is a point as a token wants it; NotFound: not even the collection.
    """

    def __init__(self, security: Security, holds: Callable[[ValueExists], Awaitable[bool]]) -> None:
        keys = (
            (security.api_key, _MANAGER),
            (security.alt_api_key, _ALT_MANAGER),
            (security.read_only_api_key, _READER),
        )
        self._keys = [(key.encode(), access) for key, access in keys if key is not None]
        self._holds = holds
        secrets = [key for key in (security.api_key, security.alt_api_key) if key is not None]
        self._token: Callable[[bytes], _Token] | None = None
        if security.jwt_rbac and secrets:
            # Those that are good are remembered: to check one takes longer than a small search.
            self._token = lru_cache(KEPT_TOKENS)(lambda token: _decode(token, secrets))

    async def access(self, headers: Headers) -> Access:
        """Raises Unauthorized, Forbidden, and what ``holds`` does."""
        given = _given(headers)
        if given is None:
            raise Unauthorized("Must provide an API key or an Authorization bearer token")
        # All are compared, and each in a time that does not tell how far they are alike.
        holders = [access for key, access in self._keys if hmac.compare_digest(key, given)]
        if holders:
            return holders[0]
        if self._token is None:
            raise Unauthorized("Invalid API key or JWT")
        token = self._token(given)
        if time.time() > token.ends:
            raise Forbidden("the token has expired")
        if token.value_exists is not None:
            try:
                holds = await self._holds(token.value_exists)
            except NotFound:
                raise Forbidden("Invalid JWT, stateful validation failed") from None
            if not holds:
                raise Unauthorized("Invalid JWT, stateful validation failed")
        return token.access


def _given(headers: Headers) -> bytes | None:
    """The key or token of a request: ``api-key`` comes before ``authorization``, as in Qdrant."""
    bearer = None
    for name, value in headers:
        if name == b"api-key":
            return value
        if bearer is None and name == b"authorization" and value[:7].lower() == b"bearer ":
            bearer = value[7:]
    return bearer


def _decode(token: bytes, secrets: Sequence[str]) -> _Token:
    """A token that is signed with one of ``secrets``. Raises Unauthorized, Forbidden."""
    try:
        given = _verified(token, secrets)
    except jwt.ExpiredSignatureError:
        raise Forbidden("the token has expired") from None
    except jwt.InvalidSignatureError:
        raise Forbidden("the token is not signed with the API key") from None
    except (jwt.PyJWTError, ValueError):
        raise Unauthorized("Invalid API key or JWT") from None
    try:
        claims = msgspec.convert(given, _Claims)
        if claims.value_exists is not None:
            claims.value_exists.filter().check("value_exists")
    except (msgspec.ValidationError, InvalidInput) as error:
        raise Unauthorized(f"Invalid JWT: {error}") from None
    return _Token(
        _access(claims),
        float("inf") if claims.exp is None else claims.exp + LEEWAY_SECONDS,
        claims.value_exists,
    )


def _verified(token: bytes, secrets: Sequence[str]) -> dict[str, Any]:
    """Raises what `jwt.decode` does."""
    first, *others = secrets
    try:
        return jwt.decode(
            token,
            first,
            algorithms=[_ALGORITHM],
            leeway=LEEWAY_SECONDS,
            options={"verify_aud": False, "verify_iss": False},
        )
    except jwt.InvalidSignatureError:
        if others:
            return _verified(token, others)
        raise


def _access(claims: _Claims) -> Access:
    subject = claims.subject or claims.sub
    if subject is not None:
        # JSON may have halves of characters, which neither metrics nor the audit log can.
        subject = subject.encode(errors="replace").decode()[:MAX_SUBJECT]
    if isinstance(claims.access, str):
        return Access(_LEVELS[claims.access], holder="token", subject=subject)
    collections = {one.collection: _LEVELS[one.access] for one in claims.access}
    if len(collections) < len(claims.access):
        raise Unauthorized("Invalid JWT: access: each collection can be named once")
    return Access(None, collections, "token", subject)
