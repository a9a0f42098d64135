"""The write-ahead log of one shard in the object store, and the fence between its writers.

Record ``n`` is the object ``{prefix}/{n:020d}``, created by put-if-absent and never changed: it
holds a batch of operations, or a fence. A writer takes over by replaying the log to its end and
putting a fence into the first free slot; from then on it appends slot by slot, one put at a time.

Why two writers never both acknowledge a write, with no clock or lease:

1. A writer's slots run on from its fence without a gap, since it moves to the next slot only once
   it knows the last one to be its own. So the first record of somebody else that it can meet is in
   its very next slot, and it is a fence, because every writer begins with one. Fences are never
   deleted: its put fails, however late it comes, and it is fenced for good.
2. `WriteAheadLog.truncate` deletes what snapshots cover, and leaves free slots that were once
   taken. A fence put there would stop nobody. But the newest covered record always stays, so behind
   every such slot there is a record. A writer that has put its fence therefore lists what comes
   after it: when there is nothing the slot was never taken before, and by (1) the earlier writers
   end there; when there is something, it gives up.
3. A batch whose put had no answer may have been replayed and deleted by the next writer when it is
   put again. The put then succeeds, and rightly is acknowledged, since the next writer has the
   batch; the slot after it is that writer's fence.
4. A fence that was put into a freed slot and given up stays there, and hides the gap from another
   recovery that still replays from an older snapshot. What a take-over replays therefore counts
   only once the snapshot it began from is found to be the newest still: truncation comes after a
   newer one, so nothing beyond was deleted. The claim of the manifest is that check.

The scheme of a put at the next number that fences is SlateDB's.
"""

from __future__ import annotations

import re
import struct
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import msgspec
import numpy as np
import xxhash

from shard.errors import Corrupt, Fenced, InvalidInput, NotFound, Unavailable
from shard.model import KEY_DTYPE, Delete, Keys, Operation, Upsert
from shard.objects import ObjectStore
from shard.objects.conditional import put_once
from shard.packing import Packed, pack, unpack

_PREFETCH = 16
_PUT_SECONDS = 30.0
_NAME = re.compile(r"[0-9]{20}")

# Magic, kind of record, bytes of body, XXH3-64 of all of the header before it and the body.
_HEADER = struct.Struct("<8sBQ")
_CHECKSUM = struct.Struct("<Q")
_START = _HEADER.size + _CHECKSUM.size
_MAGIC = b"shoalog2"
_BATCH, _FENCE = 0, 1


class Record(msgspec.Struct, frozen=True):
    """One record of the log; a fence has no operations."""

    sequence: int
    operations: list[Operation]


class _Upsert(msgspec.Struct, frozen=True, tag="upsert", array_like=True):
    keys: memoryview
    vectors: dict[str, Packed]
    payloads: Sequence[bytes]


class _Delete(msgspec.Struct, frozen=True, tag="delete", array_like=True):
    keys: memoryview


class _Body(msgspec.Struct, frozen=True, array_like=True):
    sequence: int
    writer: bytes
    operations: list[_Upsert | _Delete]


_Stored: TypeAlias = _Upsert | _Delete
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Body)


class WriteAheadLog:
    """One writer's hold on the log at ``prefix``. Append from one thread at a time.

    `truncate` may run beside `append`. Once `append` has raised Fenced or Unavailable it raises
    that for ever, since what it may still build on is unknown: recover, with a take-over anew.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self._prefix = f"{prefix}/"
        self._writer = b""
        self._next = 0
        self._failure: str | None = f"{self._prefix}: not taken over"
        self._fenced = False
        # Fences beyond `_replayed_from`; what lies before it is told apart by reading it.
        self._fences: set[int] = set()
        self._replayed_from = 0
        self._truncated = 0

    @property
    def sequence(self) -> int:
        """The newest record that is known to be committed."""
        return self._next - 1

    def take_over(self, after: int) -> Iterator[Record]:
        """Every record beyond ``after``, ascending; at the end this writer owns the log.

        ``after`` is the sequence that the newest snapshot covers, 0 without one. The iterator must
        be used up. Raises Fenced when another writer took over meanwhile; Corrupt when a record is
        damaged or missing; Unavailable. Records are also missing, and not always noticed, when
        another writer has truncated what a newer snapshot covers: look for one afterwards, before
        you believe in the damage or in the records, and begin again from it.
        """
        self._writer = uuid.uuid4().bytes
        self._failure, self._fenced = f"{self._prefix}: not taken over", False
        self._next, self._replayed_from, self._truncated = after + 1, after, 0
        self._fences.clear()
        while True:
            yield from self._replay()
            fence = self._next
            data = _encode(fence, self._writer, _FENCE, [])
            if put_once(self._store, self._key(fence), data, _PUT_SECONDS):
                break
        if next(self._list(fence), None) is not None:
            raise Fenced(f"{self._key(fence)}: another writer took over at the same time")
        self._fences.add(fence)
        self._next = fence + 1
        self._failure = None

    def append(self, operations: Sequence[Operation]) -> int:
        """Commit a batch; returns its sequence once it is durable.

        Raises Fenced when another writer has taken over, and Unavailable when the outcome stayed
        unknown: the batch may or may not be found by whoever takes over next.
        """
        if self._failure is not None:
            raise (Fenced if self._fenced else Unavailable)(self._failure)
        sequence = self._next
        key = self._key(sequence)
        data = _encode(sequence, self._writer, _BATCH, operations)
        try:
            committed = put_once(self._store, key, data, _PUT_SECONDS)
        except BaseException as error:
            self._failure = f"{key}: unknown whether it is committed: {error}"
            raise
        if not committed:
            self._fenced = True
            self._failure = f"{key}: another writer has taken over"
            raise Fenced(self._failure)
        self._next = sequence + 1
        return sequence

    def follow(self, after: int, last: int | None = None) -> Iterator[Record]:
        """The records beyond ``after`` up to ``last``, ascending, whoever has the log.

        ``last`` None: to the end as it is now. None of them may be truncated meanwhile; where that
        cannot be told, look for a newer snapshot afterwards, as for `take_over`. May run beside
        `append`. Raises Unavailable, and Corrupt when one is damaged or missing.
        """
        reader = WriteAheadLog(self._store, self._prefix.removesuffix("/"))
        reader._next = after + 1
        for record in reader._replay():
            if last is not None and record.sequence > last:
                return
            yield record
        if last is not None and reader.sequence < last:
            raise self._missing(reader.sequence + 1)

    def truncate(self, covered: int) -> None:
        """Delete the batches before ``covered``, up to which a committed snapshot has everything.

        Record ``covered`` itself goes with a later call, and fences stay for ever. Raises
        Unavailable, with some of them deleted.
        """
        if not 0 <= covered < self._next:
            raise ValueError(f"covered {covered}: expected 0 to {self._next - 1}")
        with ThreadPoolExecutor(_PREFETCH, "log-truncate") as pool:
            deletes = pool.map(self._delete_batch, self._list(self._truncated - 1, covered - 1))
            for _ in deletes:
                pass
        self._truncated = max(self._truncated, covered)

    def _delete_batch(self, sequence: int) -> None:
        if sequence in self._fences:
            return
        key = self._key(sequence)
        if sequence <= self._replayed_from:
            try:
                header = self._store.get_range(key, 0, _HEADER.size)
            except NotFound:
                return
            if not header.startswith(_MAGIC + bytes([_BATCH])):
                return
        self._store.delete(key)

    def _replay(self) -> Iterator[Record]:
        """Records from `_next` on to the end of the log as it is now."""
        with ThreadPoolExecutor(_PREFETCH, "log-replay") as pool:
            fetched: deque[tuple[int, Future[bytes]]] = deque()
            sequences = self._list(self._next - 1)
            try:
                while True:
                    while len(fetched) < _PREFETCH and (found := next(sequences, None)) is not None:
                        fetched.append((found, pool.submit(self._store.get, self._key(found))))
                    if not fetched:
                        return
                    sequence, data = fetched.popleft()
                    if sequence != self._next:
                        raise self._missing(self._next)
                    try:
                        kind, operations = _decode(self._key(sequence), sequence, data.result())
                    except NotFound:
                        raise self._missing(sequence) from None
                    if kind == _FENCE:
                        self._fences.add(sequence)
                    self._next = sequence + 1
                    yield Record(sequence, operations)
            finally:
                for _, data in fetched:
                    data.cancel()

    def _missing(self, sequence: int) -> Corrupt:
        return Corrupt(f"{self._key(sequence)}: missing, though later records exist")

    def _list(self, after: int, last: int | None = None) -> Iterator[int]:
        """Sequences of the records there are beyond ``after``, ascending."""
        start_after = self._key(after) if after > 0 else ""
        for key in self._store.list(self._prefix, start_after):
            name = key.removeprefix(self._prefix)
            if not _NAME.fullmatch(name):
                continue
            sequence = int(name)
            if last is not None and sequence > last:
                return
            yield sequence

    def _key(self, sequence: int) -> str:
        return f"{self._prefix}{sequence:020d}"


def _encode(sequence: int, writer: bytes, kind: int, operations: Sequence[Operation]) -> bytes:
    body = _encoder.encode(_Body(sequence, writer, [_to_stored(one) for one in operations]))
    header = _HEADER.pack(_MAGIC, kind, len(body))
    return b"".join((header, _CHECKSUM.pack(_checksum(header, body)), body))


def _decode(key: str, sequence: int, data: bytes) -> tuple[int, list[Operation]]:
    """Kind and operations; their arrays may be read-only views of ``data``. Raises Corrupt."""
    view = memoryview(data)
    if len(view) < _START or not data.startswith(_MAGIC):
        raise Corrupt(f"{key}: not a record of the log")
    _, kind, length = _HEADER.unpack_from(view)
    body = view[_START:]
    if len(body) != length:
        raise Corrupt(f"{key}: {len(body)} bytes, expected {length}")
    if _CHECKSUM.unpack_from(view, _HEADER.size)[0] != _checksum(view[: _HEADER.size], body):
        raise Corrupt(f"{key}: the checksum does not match")
    try:
        record = _decoder.decode(body)
        operations = [_from_stored(one) for one in record.operations]
    except (msgspec.DecodeError, InvalidInput, ValueError) as error:
        raise Corrupt(f"{key}: {error}") from error
    if record.sequence != sequence:
        raise Corrupt(f"{key}: holds record {record.sequence}")
    return kind, operations


def _checksum(header: bytes | memoryview, body: bytes | memoryview) -> int:
    hasher = xxhash.xxh3_64(header)
    hasher.update(body)
    return hasher.intdigest()


def _to_stored(operation: Operation) -> _Stored:
    keys = _bytes_of(operation.keys)
    if isinstance(operation, Delete):
        return _Delete(keys)
    vectors = {name: pack(column) for name, column in operation.vectors.items()}
    return _Upsert(keys, vectors, operation.payloads)


def _from_stored(stored: _Stored) -> Operation:
    keys: Keys = np.frombuffer(stored.keys, KEY_DTYPE)
    if isinstance(stored, _Delete):
        return Delete(keys)
    vectors = {name: unpack(one, len(keys), name) for name, one in stored.vectors.items()}
    if len(stored.payloads) != len(keys):
        raise ValueError(f"{len(stored.payloads)} payloads for {len(keys)} keys")
    return Upsert(keys, vectors, stored.payloads)


def _bytes_of(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
