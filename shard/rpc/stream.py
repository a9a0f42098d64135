"""Many calls to one server over one gRPC stream.

A gRPC call of its own costs more than a small search takes: about 0.4 ms in Python, on both ends
together, where a message on a stream that stays open costs half of that. A call is a `Call`, and
its answer an `Answer` of the same number; answers come in any order. A call that is given up is
taken back by its number alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from shard.errors import Corrupt, Unavailable
from shard.rpc import shard_pb2 as pb
from shard.rpc.origin import Calling
from shard.rpc.status import error_of


class CallStream:
    """The client's end. It opens a stream when there is something to send, and anew when it broke.

    ``connect`` starts the stream to the server at ``address``. Use from one event loop.
    """

    def __init__(self, connect: Callable[[], Any], address: str) -> None:
        self._connect = connect
        self._address = address
        self._numbers = itertools.count(1)
        self._open: _OpenStream | None = None

    async def call(
        self, method: str, request: bytes, timeout: float, calling: Calling
    ) -> pb.Answer:
        """The answer to ``request``, whatever its status. Raises TimeoutError, Unavailable, and
        Corrupt."""
        if self._open is None or self._open.broken:
            self._open = _OpenStream(self._connect(), self._address)
        stream, number = self._open, next(self._numbers)
        message = pb.Call(
            number=number,
            method=method,
            request=request,
            timeout=timeout,
            request_ids=calling.request_ids,
            traceparents=calling.traceparents,
        )
        answered: asyncio.Future[pb.Answer] = asyncio.get_running_loop().create_future()
        stream.waiting[number] = answered
        stream.send(message.SerializeToString())
        try:
            async with asyncio.timeout(timeout):
                answer = await answered
        except TimeoutError:
            raise TimeoutError(f"shard server {self._address}: no answer in time") from None
        finally:
            del stream.waiting[number]
            if answered.cancelled():
                stream.send(pb.Call(number=number).SerializeToString())
        return answer

    async def close(self, grace: float | None) -> None:
        """End the stream; calls under way have ``grace`` seconds to end."""
        if self._open is not None:
            await self._open.close(grace)


class _OpenStream:
    def __init__(self, rpc: Any, address: str) -> None:
        self.waiting: dict[int, asyncio.Future[pb.Answer]] = {}
        self.broken = False
        self._rpc = rpc
        self._address = address
        self._messages: asyncio.Queue[bytes] = asyncio.Queue()
        # Tasks of its own: a caller that is cancelled in the midst of a write would end the stream.
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    def send(self, message: bytes) -> None:
        self._messages.put_nowait(message)

    async def close(self, grace: float | None) -> None:
        if grace and self.waiting:
            await asyncio.wait(self.waiting.values(), timeout=grace)
        self._break(Unavailable(f"shard server {self._address}: connection closed"))

    async def _write(self) -> None:
        while True:
            message = await self._messages.get()
            try:
                await self._rpc.write(message)
            except (grpc.RpcError, asyncio.InvalidStateError):
                return  # The reader learns the reason.

    async def _read(self) -> None:
        try:
            while (data := await self._rpc.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                answer = pb.Answer.FromString(data)
                answered = self.waiting.get(answer.number)
                if answered is not None and not answered.done():
                    answered.set_result(answer)
            error: Exception = Unavailable(f"shard server {self._address}: closed the connection")
        except grpc.aio.AioRpcError as failed:
            error = error_of(failed.code(), failed.details() or "", self._address)
        except asyncio.CancelledError:
            error = Unavailable(f"shard server {self._address}: connection closed")
        except Exception as failed:
            error = Corrupt(f"shard server {self._address}: malformed answer: {failed}")
        self._break(error)

    def _break(self, error: Exception) -> None:
        self.broken = True
        for answered in self.waiting.values():
            if not answered.done():
                answered.set_exception(error)
        self._rpc.cancel()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()


async def serve_calls(
    answer: Callable[[pb.Call], Awaitable[pb.Answer]],
    messages: AsyncIterator[bytes],
    context: grpc.aio.ServicerContext[bytes, bytes],
) -> None:
    """The server's end of one stream: answer what comes, until it ends."""
    running: dict[int, asyncio.Task[None]] = {}
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def run(call: pb.Call) -> None:
        answers.put_nowait((await answer(call)).SerializeToString())

    def start(call: pb.Call) -> None:
        task = running[call.number] = asyncio.create_task(run(call))
        # Not by the task itself, which may be cancelled before it begins.
        task.add_done_callback(lambda _: running.pop(call.number, None))

    async def write() -> None:
        with contextlib.suppress(grpc.RpcError):
            while True:
                await context.write(await answers.get())

    # A task of its own: a call that is taken back in the midst of a write would end the stream.
    writing = asyncio.create_task(write())
    try:
        async for data in messages:
            call = pb.Call.FromString(data)
            if call.method:
                start(call)
            elif call.number in running:
                running[call.number].cancel()
    except DecodeError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"call: {error}")
    finally:
        for task in (writing, *running.values()):
            task.cancel()
