"""A shard's segments in the object store, and their local copies."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shard.errors import Corrupt, NotFound
from shard.objects import ObjectStore
from shard.segment import HEADER, segment_files, verify

_TRANSFERS = 4
_IMPORT = "import."


class SegmentStore:
    """The segments at ``prefix``, with local copies in the directory ``scratch``.

    An id begins with the epoch of the writer that made it: what an earlier writer left behind is
    told from what the present one is about to name in a manifest. Or it tells the bulk load that
    made it. Methods raise Unavailable.
    """

    def __init__(self, store: ObjectStore, prefix: str, scratch: Path) -> None:
        self._store = store
        self._prefix = f"{prefix}/"
        self._scratch = scratch

    def new(self, epoch: int) -> str:
        """The id of a segment to be written into `directory`."""
        segment_id = f"{epoch:020d}-{uuid.uuid4().hex}"
        self.directory(segment_id).mkdir(parents=True)
        return segment_id

    def directory(self, segment_id: str) -> Path:
        """Where the local copy is."""
        return self._scratch / segment_id

    def upload(self, segment_id: str) -> None:
        """Make the segment durable."""
        directory = self.directory(segment_id)
        for name in segment_files(directory):
            self._store.put_file(self._key(segment_id, name), directory / name)

    def download(self, segment_id: str) -> None:
        """Make a local copy, whole and verified. Raises Corrupt."""
        directory = self.directory(segment_id)
        directory.mkdir(parents=True)
        try:
            self._get(segment_id, HEADER)
            names = [name for name in segment_files(directory) if name != HEADER]
            with ThreadPoolExecutor(_TRANSFERS, "download") as transfers:
                list(transfers.map(lambda name: self._get(segment_id, name), names))
        except NotFound as error:
            raise Corrupt(f"segment {segment_id} is named in a manifest, but {error}") from error
        verify(directory)

    def drop(self, segment_id: str) -> None:
        """Delete the local copy; readers that have it open go on."""
        shutil.rmtree(self.directory(segment_id), ignore_errors=True)

    def delete(self, segment_id: str) -> None:
        """Delete the stored segment."""
        for key in self._store.list(f"{self._prefix}{segment_id}/"):
            self._store.delete(key)

    def delete_orphans(
        self, before_epoch: int, named: AbstractSet[str], is_over: Callable[[str], bool]
    ) -> None:
        """Delete what writers before ``before_epoch`` stored, except the segments ``named``.

        To be called once that epoch has claimed the manifest: those writers can name nothing more.
        What bulk loads have stored stays as long as they are not known to be over.
        """
        for key in self._store.list(self._prefix):
            segment_id = key.removeprefix(self._prefix).partition("/")[0]
            if segment_id in named:
                continue
            job = job_of(segment_id)
            epoch = segment_id.partition("-")[0]
            if is_over(job) if job is not None else epoch.isdecimal() and int(epoch) < before_epoch:
                self._store.delete(key)

    def _get(self, segment_id: str, name: str) -> None:
        self._store.get_file(self._key(segment_id, name), self.directory(segment_id) / name)

    def _key(self, segment_id: str, name: str) -> str:
        return f"{self._prefix}{segment_id}/{name}"


def imported_id(job: str, chunk: int) -> str:
    """The id of a segment that a bulk load has made."""
    return f"{_IMPORT}{job}.{chunk:06d}"


def job_of(segment_id: str) -> str | None:
    """The bulk load that has made the segment; None: a writer of the shard has."""
    if not segment_id.startswith(_IMPORT):
        return None
    return segment_id.removeprefix(_IMPORT).rpartition(".")[0]
