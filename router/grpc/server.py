"""The gRPC server of a router."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn, TypeAlias

import grpc
import orjson
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from grpc import StatusCode, aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from starlette.types import ASGIApp

from router.app import MAX_BODY_BYTES
from router.errors import NO_OPERATION
from router.grpc import protocol
from router.grpc.asgi import Response, ask
from router.grpc.from_rest import from_rest
from router.grpc.operations import OPERATIONS, query_string
from router.grpc.to_rest import to_rest
from shard.errors import InvalidInput

Context: TypeAlias = aio.ServicerContext[bytes, Message]

MAX_DETAILS_BYTES = 1_500
"""Of UTF-8; percent-encoded they are up to three times as many, of the 8 KiB that clients take."""
_FORWARDED = ("api-key", "authorization", "x-request-id", "traceparent", "shoal-usage")
"""Metadata that is passed on as headers."""
_ANSWERED = {"x-request-id", "retry-after"}
"""Headers that are passed back as trailing metadata."""
_OPTIONS = (
    ("grpc.so_reuseport", 1),
    ("grpc.max_receive_message_length", MAX_BODY_BYTES),
    ("grpc.max_send_message_length", -1),
    # Some clients ask every few seconds whether the connection is there.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
_CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    405: StatusCode.UNIMPLEMENTED,
    408: StatusCode.DEADLINE_EXCEEDED,
    409: StatusCode.ALREADY_EXISTS,
    413: StatusCode.INVALID_ARGUMENT,
    422: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    501: StatusCode.UNIMPLEMENTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}


@contextmanager
def reserved_port(host: str, port: int) -> Iterator[int]:
    """Keeps a port for the servers of this service's processes, which share it; 0: any free one.

    Raises OSError where somebody else has it.
    """
    try:
        # Who shares a port is let in beside others who do; who does not finds them out.
        with socket.create_server((host, port)) as probe:
            port = probe.getsockname()[1]
        # It does not listen, and so takes no connection from those who do.
        reserved = socket.socket()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((host, port))
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    with reserved:
        yield port


@asynccontextmanager
async def serving(
    app: ASGIApp,
    host: str,
    port: int,
    drain_seconds: float,
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncIterator[health.aio.HealthServicer]:  # type: ignore[name-defined]  # not in the stubs
    """Answers calls to a port, which other processes may share, with what ``app`` answers.

    The standard health service tells probes what is set in what this yields. At the end, calls
    under way get ``drain_seconds``. Raises OSError where the port cannot be listened on.
    """
    server = aio.server(options=_OPTIONS)
    for name in protocol.SERVICES:
        service = protocol.service(name)
        methods = {method.name: _handler(app, method) for method in service.methods}
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service.full_name, methods)]
        )
    wellness = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(wellness, server)
    await wellness.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    try:
        if credentials is None:
            server.add_insecure_port(f"{host}:{port}")
        else:
            server.add_secure_port(f"{host}:{port}", credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error}") from error
    await server.start()
    try:
        yield wellness
    finally:
        await wellness.enter_graceful_shutdown()
        await server.stop(drain_seconds)


def _handler(app: ASGIApp, method: MethodDescriptor) -> Any:
    operation = OPERATIONS[f"{method.containing_service.name}.{method.name}"]
    request = protocol.message(method.input_type.name)
    answer = protocol.message(method.output_type.name)
    has_body = operation.method not in ("GET", "DELETE")

    async def handle(data: bytes, context: Context) -> Message:
        try:
            call = request.FromString(data)
        except DecodeError:  # By gRPC itself it would be the server's own failure.
            await _abort(
                context, StatusCode.INVALID_ARGUMENT, f"expected a {request.DESCRIPTOR.name}"
            )
        try:
            path = operation.path(call)
            query = query_string(call)
            body = to_rest(call) if has_body else None
        except InvalidInput as error:
            await _abort(context, StatusCode.INVALID_ARGUMENT, f"Wrong input: {error}")
        metadata = context.invocation_metadata() or ()
        headers = [(name, str(value)) for name, value in metadata if name in _FORWARDED]
        response = await ask(
            app,
            operation.method,
            path,
            query,
            headers,
            orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY) if has_body else b"",
        )
        answered = [(name, response.headers[name]) for name in _ANSWERED & response.headers.keys()]
        context.set_trailing_metadata(tuple(answered))
        given = orjson.loads(response.body)
        if response.status != 200:
            await _abort_with(context, method, response, given["status"]["error"])
        result = operation.answer(given.get("result", given))
        return from_rest(answer, {"time": given.get("time"), "usage": given.get("usage"), **result})

    return grpc.unary_unary_rpc_method_handler(
        handle,
        response_serializer=answer.SerializeToString,
    )


async def _abort_with(
    context: Context, method: MethodDescriptor, response: Response, message: str
) -> NoReturn:
    """End a call as ``response`` says, whose error is ``message``."""
    code = _CODES.get(response.status, StatusCode.INTERNAL)
    if message.startswith(NO_OPERATION):
        code = StatusCode.UNIMPLEMENTED
    if code is StatusCode.UNIMPLEMENTED:
        message = f"Shoal does not have {method.full_name}"
    await _abort(context, code, message)


async def _abort(context: Context, code: StatusCode, message: str) -> NoReturn:
    details = message.encode()[:MAX_DETAILS_BYTES].decode(errors="ignore")
    await context.abort(code, details)
    raise AssertionError("abort raises")
