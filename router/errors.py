"""Every error leaves as JSON in Qdrant's form: ``{"status": {"error": MESSAGE}, "time": SECONDS}``.

Status codes are Qdrant's where it has one: 400 for a body that cannot be read or a request that
can never succeed, 401 without a key, 403 with one that is not enough, 404, 409 for a name that is
taken, 422 for a value out of its range, 408 for a deadline that passed, 429 with Retry-After for a
full queue, 503 with Retry-After when the shards cannot answer now.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from time import perf_counter

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from shard.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    Overloaded,
    ShoalError,
    Unavailable,
)

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 1
MAX_MESSAGE = 1_000
"""Messages quote the request, which may be long."""
NO_OPERATION = "Not found: Shoal has no operation"
"""How the message for a path begins that nothing is at."""


class Malformed(InvalidInput):
    """A body that is not JSON of the expected types; the message names the field."""


class OutOfRange(InvalidInput):
    """A value of the right type outside of its allowed range; the message names the field."""


class TooLarge(InvalidInput):
    """A body over the size limit."""


class Unauthorized(ShoalError):
    """Without a key, or with one that is none."""


class Forbidden(ShoalError):
    """The key is good, but not for this."""


def error_response(
    request: Request, status: int, message: str, headers: dict[str, str] | None = None
) -> Response:
    """An error in Qdrant's form. ``request`` tells since when the clock runs."""
    started = request.scope.get("started")
    if len(message) > MAX_MESSAGE:
        message = message[:MAX_MESSAGE] + "…"
    body = {
        "status": {"error": message},
        "time": 0.0 if started is None else perf_counter() - started,
    }
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


def _describe(error: Exception) -> tuple[int, str]:
    match error:
        case Unauthorized():
            return HTTPStatus.UNAUTHORIZED, str(error)
        case Forbidden():
            return HTTPStatus.FORBIDDEN, f"Forbidden: {error}"
        case Malformed():
            return HTTPStatus.BAD_REQUEST, f"Format error in JSON body: {error}"
        case OutOfRange():
            return HTTPStatus.UNPROCESSABLE_ENTITY, f"Validation error in JSON body: [{error}]"
        case TooLarge():
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)
        case InvalidInput():
            return HTTPStatus.BAD_REQUEST, f"Wrong input: {error}"
        case NotFound():
            return HTTPStatus.NOT_FOUND, f"Not found: {error}"
        case AlreadyExists():
            return HTTPStatus.CONFLICT, f"Wrong input: {error}"
        case Overloaded():
            return HTTPStatus.TOO_MANY_REQUESTS, f"Too many requests: {error}"
        case Unavailable():
            return HTTPStatus.SERVICE_UNAVAILABLE, f"Service unavailable: {error}"
        case TimeoutError():
            return HTTPStatus.REQUEST_TIMEOUT, f"Timeout error: {str(error) or 'deadline exceeded'}"
        case _:
            return HTTPStatus.INTERNAL_SERVER_ERROR, f"Service internal error: {error}"


async def on_error(request: Request, error: Exception) -> Response:
    """What ``request`` is answered when Shoal raises ``error``."""
    status, message = _describe(error)
    # Any other exception is raised again by Starlette, and logged by the server.
    if status == HTTPStatus.INTERNAL_SERVER_ERROR and isinstance(error, ShoalError):
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    retry = status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if retry else None
    if status == HTTPStatus.UNAUTHORIZED:
        headers = {"WWW-Authenticate": "Bearer"}
    return error_response(request, status, message, headers)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            message = f"{NO_OPERATION} {what}"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            message = f"Method not allowed: Shoal has no operation {what}"
        case _:
            message = str(error.detail)
    headers = dict(error.headers) if error.headers else None
    return error_response(request, error.status_code, message, headers)


async def _on_bad_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = ", ".join(
        f"{'.'.join(map(str, problem['loc'][1:]))}: {problem['msg']}" for problem in error.errors()
    )
    kind = "path" if error.errors()[0]["loc"][0] == "path" else "query"
    return error_response(
        request,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        f"Validation error in {kind} parameters: [{problems}]",
    )


async def _on_disconnect(request: Request, error: Exception) -> Response:
    # Nobody reads this answer; without it the server would log an exception.
    return Response(status_code=HTTPStatus.BAD_REQUEST)


def install(app: FastAPI) -> None:
    """Make ``app`` answer every exception in Qdrant's form."""
    app.add_exception_handler(ShoalError, on_error)
    app.add_exception_handler(TimeoutError, on_error)
    app.add_exception_handler(Exception, on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_bad_parameter)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
