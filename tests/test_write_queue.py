"""The queue of writes: its bounds, its groups, and that nobody who waits in it is forgotten."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread

import numpy as np
import pytest

from shard import write_queue
from shard.errors import Fenced, Overloaded, Unavailable
from shard.model import Delete, Upsert, encode_ids, unnamed
from shard.write_queue import Write, WriteQueue

SECONDS = 10.0


def write(size: int = 1) -> Write:
    """A write of ``size`` bytes, as the queue counts them."""
    point = Upsert(encode_ids([]), unnamed(np.empty((0, 1), np.float32)), [b"x" * size])
    return Write([point], applied=True)


def test_size_counts_keys_vectors_and_payloads() -> None:
    points = Upsert(encode_ids([1, 2]), unnamed(np.zeros((2, 3), np.float32)), [b"abc", b""])
    assert Write([points], applied=True).bytes == 2 * 64 + 24 + 3
    assert Write([points, Delete(encode_ids([7]))], applied=True).bytes == 2 * 64 + 24 + 3 + 64
    assert Write([], applied=True).bytes == 0


def test_first_in_first_out_in_groups_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_queue, "MAX_GROUP_BYTES", 100)
    queue = WriteQueue()
    writes = [write(size) for size in (60, 40, 1, 500, 99, 2)]
    for one in writes:
        queue.put(one)
    # A group is full to the last byte, and what is larger than any group is one of its own.
    assert queue.take() == (writes[:2], 100)
    assert queue.take() == (writes[2:3], 1)
    assert queue.take() == (writes[3:4], 500)
    assert queue.take() == (writes[4:5], 99)
    queue.put(writes[0])
    assert queue.take() == ([writes[5], writes[0]], 62)


def test_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_queue, "MAX_WAITING_BYTES", 100)
    queue = WriteQueue()
    queue.put(write(60))
    queue.put(write(40))
    late = write(1)
    with pytest.raises(Overloaded, match="100 bytes"):
        queue.put(late)
    assert not late.committed.done()
    group, _ = queue.take()
    assert [one.bytes for one in group] == [60, 40]
    queue.put(write(101))  # Nothing else waits: else it could never be let in.
    with pytest.raises(Overloaded):
        queue.put(write(1))
    queue.take()
    queue.put(write(100))


def test_the_number_of_writes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_queue, "MAX_WAITING_WRITES", 3)
    queue = WriteQueue()
    for _ in range(3):
        queue.put(write(0))
    with pytest.raises(Overloaded, match="3 writes"):
        queue.put(write(0))
    assert len(queue.take()[0]) == 3
    queue.put(write(0))


def test_room_is_given_back_by_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_queue, "MAX_WAITING_BYTES", 100)
    queue = WriteQueue()
    queue.put(write(70))
    queue.refuse(Unavailable("out of reach"))
    queue.refuse(None)
    queue.put(write(60))
    queue.put(write(40))
    assert queue.take()[1] == 100


def test_refusal_fails_what_waits_and_what_comes() -> None:
    queue = WriteQueue()
    waiting = [write(), write()]
    for one in waiting:
        queue.put(one)
    queue.refuse(Fenced("taken over"))
    for one in waiting:
        with pytest.raises(Fenced, match="taken over"):
            one.committed.result(0)
    raised = []
    for _ in range(2):
        with pytest.raises(Fenced, match="taken over") as error:
            queue.put(write())
        raised.append(error.value)
    assert raised[0] is not raised[1]  # Else every caller's traceback would grow the others'.
    queue.refuse(None)
    last = write()
    queue.put(last)
    assert queue.take() == ([last], 1)


def test_take_waits_for_a_write() -> None:
    queue = WriteQueue()
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(queue.take)
        with pytest.raises(TimeoutError):
            taken.result(0.05)
        one = write()
        queue.put(one)
        assert taken.result(SECONDS) == ([one], 1)


def test_close_lets_every_take_return() -> None:
    queue = WriteQueue()
    with ThreadPoolExecutor(3) as pool:
        takes = [pool.submit(queue.take) for _ in range(3)]
        with pytest.raises(TimeoutError):
            takes[0].result(0.05)
        queue.close(Unavailable("closing"))
        assert [take.result(SECONDS) for take in takes] == [([], 0)] * 3
    assert queue.take() == ([], 0)


def test_what_is_closed_stays_closed() -> None:
    queue = WriteQueue()
    waiting = write()
    queue.put(waiting)
    queue.close(Unavailable("closing"))
    with pytest.raises(Unavailable, match="closing"):
        waiting.committed.result(0)
    queue.refuse(None)
    queue.refuse(Fenced("too late to matter"))
    queue.close(Fenced("too late to matter"))
    with pytest.raises(Unavailable, match="closing"):
        queue.put(write())


def test_nobody_accepts_writes_again_while_the_queue_closes() -> None:
    """The store comes back just then: a write that got in would never be taken."""
    queue = WriteQueue()
    accepted: list[Write] = []

    def come_back(_: Future[int]) -> None:
        queue.refuse(None)
        again = write()
        queue.put(again)
        accepted.append(again)

    waiting = write()
    waiting.committed.add_done_callback(come_back)
    queue.put(waiting)
    queue.close(Unavailable("closing"))
    assert accepted == []
    with pytest.raises(Unavailable, match="closing"):
        queue.put(write())
    assert queue.take() == ([], 0)


@pytest.mark.parametrize("outcome", [7, Overloaded("full")])
def test_an_answer_is_given_once(outcome: int | Exception) -> None:
    one = write()
    one.settle(outcome)
    one.settle(8)
    one.settle(Unavailable("later"))
    if isinstance(outcome, Exception):
        assert one.committed.exception(0) is outcome
    else:
        assert one.committed.result(0) == outcome


@pytest.mark.parametrize("outcome", [7, Overloaded("full")])
def test_a_caller_who_has_gone_is_passed_over(outcome: int | Exception) -> None:
    one = write()
    assert one.committed.cancel()
    one.settle(outcome)
    assert one.committed.cancelled()


def test_every_write_of_many_threads_is_answered() -> None:
    """Half are taken before the queue closes and half are not: none waits for ever."""
    queue = WriteQueue()
    order: list[Write] = []

    def commit() -> None:
        while group := queue.take()[0]:
            for one in group:
                order.append(one)
                one.settle(len(order))

    def send() -> list[Write | None]:
        sent: list[Write | None] = []
        for turn in range(300):
            one = write()
            try:
                queue.put(one)
            except Unavailable:
                sent.append(None)
                continue
            sent.append(one)
            if turn == 150:
                one.committed.exception(SECONDS)
        return sent

    committer = Thread(target=commit)
    committer.start()
    with ThreadPoolExecutor(8) as pool:
        senders = [pool.submit(send) for _ in range(8)]
        while len(order) < 1_000:
            assert committer.is_alive()
        queue.close(Unavailable("closing"))
        sent = [sender.result(SECONDS) for sender in senders]
    committer.join(SECONDS)
    assert not committer.is_alive()
    done = set(order)
    for writes in sent:
        accepted = [one for one in writes if one is not None]
        assert all(one.committed.done() for one in accepted)
        committed = [one for one in accepted if one.committed.exception(0) is None]
        assert committed == [one for one in accepted if one in done]
        answers = [one.committed.result(0) for one in committed]
        assert answers == sorted(answers)
