"""Objects as files below one directory, safe against crashes and power loss.

A key is the path of its file. An object is written to a temporary file, synced, and then renamed
(`put`) or hard-linked (`put_if_absent`) to its place, and the directory is synced: readers see it
whole or not at all, and what a method returned from is on the disk. Several processes may share the
directory, on one machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from shard.errors import InvalidInput, NotFound, Unavailable
from shard.objects.keys import check_key, is_key

# No key can hold a "~": nothing below this directory is ever listed.
_TEMPORARY = "~temporary"
_STALE_SECONDS = 3600.0


class LocalObjectStore:
    """An `shard.objects.ObjectStore` in the directory ``root``, which is made when missing.

    The file system must have hard links. Raises Unavailable when the directory cannot be used.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._temporary = self._root / _TEMPORARY
        # Directories whose own entries this process knows to be on the disk.
        self._durable: set[Path] = set()
        with self._errors():
            self._make_directory(self._temporary)
            self._remove_stale()

    def get(self, key: str) -> bytes:
        with self._reading(key) as path:
            return path.read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        with self._reading(key) as path, path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    def put(self, key: str, data: bytes) -> None:
        with self._writing(key) as (temporary, place):
            _write(temporary, data)
            self._move(temporary, place, os.rename)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._writing(key) as (temporary, place):
            _write(temporary, data)
            try:
                self._move(temporary, place, os.link)
            except FileExistsError:
                if place.is_dir():
                    raise IsADirectoryError(str(place)) from None
                # Whoever linked it may not have synced yet, and what we tell of must last too.
                _sync_directory(place.parent)
                return False
            return True

    def put_file(self, key: str, path: Path) -> None:
        with self._writing(key) as (temporary, place):
            _sync_file(path)
            if not _link(path, temporary):
                shutil.copyfile(path, temporary)
                _sync_file(temporary)
            self._move(temporary, place, os.rename)

    def get_file(self, key: str, path: Path) -> None:
        beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            with self._reading(key) as source:
                file = source.open("rb")
            with file, self._errors():
                if not _link(source, beside):
                    with beside.open("xb") as copy:
                        shutil.copyfileobj(file, copy)
                beside.rename(path)
        finally:
            beside.unlink(missing_ok=True)

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        folder = prefix.rpartition("/")[0]
        if folder and not is_key(folder):
            return
        yield from self._walk(f"{folder}/" if folder else "", prefix, start_after)

    def delete(self, key: str) -> None:
        path = self._root / check_key(key)
        with self._errors():
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return
            _sync_directory(path.parent)
            # Empty directories would slow every list down. rmdir fails on one that another writer
            # has just used, and a writer whose directory goes away makes it again.
            for folder in path.parents:
                if folder == self._root:
                    break
                self._durable.discard(folder)
                try:
                    folder.rmdir()
                except OSError:
                    break

    def _walk(self, folder: str, prefix: str, start_after: str) -> Iterator[str]:
        """Keys in ``folder`` ("" or ending in "/") and below, a directory read at a time."""
        with self._errors():
            try:
                with os.scandir(self._root / folder) as entries:
                    # A folder sorts as its keys do: with the "/" that follows its name in them.
                    names = sorted(
                        entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name
                        for entry in entries
                    )
            except (FileNotFoundError, NotADirectoryError):
                if self._temporary.is_dir():
                    return
                raise
        for name in names:
            key = folder + name
            if not is_key(key.removesuffix("/")):
                continue
            if not name.endswith("/"):
                if key.startswith(prefix) and key > start_after:
                    yield key
            elif (key.startswith(prefix) or prefix.startswith(key)) and (
                key > start_after or start_after.startswith(key)
            ):
                yield from self._walk(key, prefix, start_after)

    def _move(self, temporary: Path, place: Path, move: Callable[[Path, Path], None]) -> None:
        """Rename or link a synced file to its place, for good."""
        while True:
            self._make_directory(place.parent)
            try:
                move(temporary, place)
                break
            except FileNotFoundError:
                if not temporary.exists():
                    raise
                # A delete that emptied the directory has removed it.
                self._durable.difference_update(place.parents)
        _sync_directory(place.parent)

    def _make_directory(self, folder: Path) -> None:
        """Make ``folder`` and what is above it, for good."""
        while folder not in self._durable:
            try:
                folder.mkdir()
            except FileNotFoundError:
                self._durable.discard(folder.parent)
                self._make_directory(folder.parent)
                continue
            except FileExistsError:
                try:
                    mode = folder.stat().st_mode
                except FileNotFoundError:
                    continue  # It was there, and a delete has just removed it.
                if not stat.S_ISDIR(mode):
                    raise NotADirectoryError(str(folder)) from None
                if self._root in folder.parents:
                    self._make_directory(folder.parent)
            _sync_directory(folder.parent)
            self._durable.add(folder)

    def _remove_stale(self) -> None:
        """Remove what crashed writers left; recent files may belong to a living one."""
        oldest = time.time() - _STALE_SECONDS
        for path in self._temporary.iterdir():
            with contextlib.suppress(FileNotFoundError):
                # Not mtime: a hard link keeps that of its source.
                if path.stat().st_ctime < oldest:
                    path.unlink()

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[Path]:
        with self._errors():
            try:
                yield self._root / check_key(key)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                # Not when the disk is no longer mounted, say.
                if self._temporary.is_dir():
                    raise NotFound(f"object {key!r} does not exist") from error
                raise

    @contextlib.contextmanager
    def _writing(self, key: str) -> Iterator[tuple[Path, Path]]:
        """A temporary path that is gone at the end, and the place of the object."""
        place = self._root / check_key(key)
        temporary = self._temporary / uuid.uuid4().hex
        with self._errors():
            try:
                yield temporary, place
            except (NotADirectoryError, IsADirectoryError) as error:
                raise InvalidInput(
                    f"object key {key!r}: expected no object above or below another"
                ) from error
            finally:
                temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unavailable(f"object store {self._root}: {error}") from error


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(source: Path, target: Path) -> bool:
    """Hard-link, or say that a copy is needed (another file system, or links not allowed)."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        return False
    return True


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return  # Removed meanwhile, after its last file.
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
