"""What a bulk load hands to a shard: segments that it has put into the shard's own place.

A job writes segments under ids that tell the job, and a list of them once they are complete. The
shard takes in what is listed (`ShardEngine`), all at once, without a word in its log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from shard.errors import NotFound
from shard.manifest import SegmentEntry
from shard.model import Calibration, Points, ShardConfig
from shard.objects import ObjectStore
from shard.objects.document import decode_stored
from shard.segment import build_indexes, write_segment
from shard.segment_store import SegmentStore, job_of


class Imports:
    """A shard's bulk loads, as their jobs see them; ``prefix`` is the shard's. Methods block.

    They raise Unavailable. All that is written is the same each time it is written: a task that is
    repeated, or has a forgotten twin, does no harm.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def write_segment(
        self,
        segment_id: str,
        batches: Iterable[Points],
        rows: int,
        config: ShardConfig,
        scratch: Path,
        *,
        template: Path | None = None,
        calibrations: Mapping[str, Calibration] | None = None,
    ) -> SegmentEntry:
        """Store ``rows`` points, in batches as `shard.segment.write_segment` has them.

        Where there are enough of them, and a ``template``, they get indexes, as
        `shard.segment.build_indexes` has it; an empty file is the template of what has none.
        ``scratch`` is a directory for what is written before it is stored.
        """
        segments = SegmentStore(self._store, f"{self._prefix}/segment", scratch)
        directory = segments.directory(segment_id)
        segments.drop(segment_id)
        directory.mkdir(parents=True)
        try:
            write_segment(directory, batches, rows, config)
            found: dict[str, Calibration] = {}
            unreachable = 0.0
            if template is not None and 0 < config.flat_threshold <= rows:
                found = build_indexes(directory, config, template, calibrations)
                unreachable = 0.0 if found else config.recall_target
            segments.upload(segment_id)
        finally:
            segments.drop(segment_id)
        return SegmentEntry(id=segment_id, rows=rows, calibrations=found, unreachable=unreachable)

    def put_list(self, job: str, segments: list[SegmentEntry]) -> None:
        """Name the segments that the shard is to take in; a key is live in one of them at most."""
        self._store.put(self._list(job), msgspec.msgpack.encode(segments))

    def get_list(self, job: str) -> list[SegmentEntry]:
        """Raises NotFound, and Corrupt."""
        key = self._list(job)
        return decode_stored(self._store.get(key), list[SegmentEntry], key, msgspec.msgpack.decode)

    def erase(self, job: str, *, segments: bool) -> int:
        """Delete the job's list, and its ``segments`` unless they are taken in. How many objects.

        The shard itself erases the segments of a job that is over and which it has not taken in,
        when it is opened.
        """
        count = 0
        try:
            self._store.get_range(self._list(job), 0, 1)
        except NotFound:
            pass
        else:
            self._store.delete(self._list(job))
            count += 1
        if segments:
            prefix = f"{self._prefix}/segment/"
            for key in self._store.list(f"{prefix}import.{job}."):
                if job_of(key.removeprefix(prefix).partition("/")[0]) == job:
                    self._store.delete(key)
                    count += 1
        return count

    def _list(self, job: str) -> str:
        return f"{self._prefix}/import/{job}"
