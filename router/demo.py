"""``shoal demo``: a service on this machine, real word vectors in it, and questions to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import httpx
import numpy as np
import orjson
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from router import word_vectors
from shard.errors import NotFound, Unavailable
from shard.model import Vectors

COLLECTION = "words"
SHARDS = 4
BATCH = 1_000
_K = 10
_NEAREST = 8
_SAMPLE = 200
_STOP_SECONDS = 30.0
_QUESTIONS = ("ocean", "python", "beethoven", "king - man + woman", "paris - france + japan")


def run(data: Path, cache: Path) -> None:
    """Serve from ``data``, load what is missing, and answer questions on the terminal.

    The downloaded package is kept in ``cache``. Raises Unavailable and Corrupt.
    """
    console = Console()
    with console.status("Starting Ray, shard servers and a router"), _service(data) as url:
        demo = _Demo(url, console)
        console.print(f"Shoal serves [bold]{data}[/] at [bold]{url}[/] ({url}/docs tells its API)")
        console.print(demo.load(cache) if demo.count() < word_vectors.WORDS else demo.kept())
        demo.wait_for_indexes()
        demo.measure()
        for question in _QUESTIONS:
            demo.answer(question)
        if sys.stdin.isatty():
            demo.converse()


@contextmanager
def _service(data: Path) -> Iterator[str]:
    command = ["serve", "--data", str(data), "--port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(  # noqa: S603 - of this program itself
        [sys.executable, "-m", "router.cli", *command, "--shards", str(SHARDS)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the demo, which then stops the service.
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise Unavailable(f"the service did not start (status {process.wait()})")
        yield line.split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


class _Demo:
    """Asks the service over its HTTP API, as any client would."""

    def __init__(self, url: str, console: Console) -> None:
        self._http = httpx.Client(base_url=url, timeout=120)
        self._console = console

    def count(self) -> int:
        """Points there are; 0 without the collection."""
        if not self._ask("GET", f"/collections/{COLLECTION}/exists")["exists"]:
            return 0
        return int(self._ask("POST", f"/collections/{COLLECTION}/points/count", {})["count"])

    def kept(self) -> str:
        return f"{word_vectors.WORDS:,} word vectors are there from an earlier run."

    def load(self, cache: Path) -> str:
        """Download and upsert the word vectors; what came of it, in words."""
        package = self._download(cache)
        if not self._ask("GET", f"/collections/{COLLECTION}/exists")["exists"]:
            size = {"size": word_vectors.DIMENSION, "distance": "Cosine"}
            body = {"vectors": size, "shard_number": SHARDS}
            self._ask("PUT", f"/collections/{COLLECTION}", body)
        started = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} vectors/s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task("Loading", total=word_vectors.WORDS, rate="-")
            done = 0
            for words, vectors in word_vectors.read(package, BATCH):
                self._upsert(words, vectors)
                done += len(words)
                rate = done / (time.monotonic() - started)
                progress.update(task, completed=done, rate=f"{rate:,.0f}")
        seconds = time.monotonic() - started
        return (
            f"{done:,} vectors written in {seconds:.0f} s, each acknowledged once it was durable."
        )

    def _download(self, cache: Path) -> Path:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task("Downloading GloVe", total=None, visible=False)
            return word_vectors.download(
                cache,
                lambda done, total: progress.update(
                    task, completed=done, total=total, visible=True
                ),
            )

    def _upsert(self, words: list[str], vectors: Vectors) -> None:
        batch = {
            "ids": [str(_id_of(word)) for word in words],
            "vectors": vectors,
            "payloads": [{"word": word} for word in words],
        }
        self._ask("PUT", f"/collections/{COLLECTION}/points?wait=true", {"batch": batch})

    def wait_for_indexes(self) -> None:
        """Return when no index is being built; queries would be answered meanwhile, too."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            progress.add_task("Building and calibrating IVF-PQ indexes in the background")
            while self._ask("GET", f"/collections/{COLLECTION}")["status"] != "green":
                time.sleep(0.2)

    def measure(self) -> None:
        """Compare answers with exact ones for some of the words, each left out of its own."""
        chosen = self._ask(
            "POST",
            f"/collections/{COLLECTION}/points/scroll",
            {"limit": _SAMPLE, "with_vector": True, "with_payload": False},
        )["points"]
        found = 0
        seconds = []
        for point in chosen:
            query = {"query": point["vector"], "limit": _K + 1}
            started = time.perf_counter()
            answer = self._query(query)
            seconds.append(time.perf_counter() - started)
            exact = self._query(query | {"params": {"exact": True}})
            nearest = [hit["id"] for hit in exact if hit["id"] != point["id"]][:_K]
            found += len({hit["id"] for hit in answer} & set(nearest))
        self._console.print(
            f"Recall@{_K} of {len(chosen)} queries against exact search: "
            f"[bold]{found / _K / len(chosen):.3f}[/]; median {1_000 * median(seconds):.1f} ms "
            "a query over HTTP, one after the other."
        )

    def converse(self) -> None:
        """Answer what is typed, until an empty line."""
        self._console.print("Ask for words, or sums of words; an empty line ends this.")
        while True:
            try:
                question = self._console.input("[bold]> [/]").strip()
            except (EOFError, KeyboardInterrupt):
                return
            if not question:
                return
            try:
                self.answer(question)
            except NotFound as error:
                self._console.print(str(error))

    def answer(self, question: str) -> None:
        """Print what is nearest to a word, or to a sum of words. Raises NotFound."""
        total = np.zeros(word_vectors.DIMENSION, np.float64)
        asked = []
        sign = 1.0
        for term in question.lower().split():
            if term in ("+", "-"):
                sign = 1.0 if term == "+" else -1.0
                continue
            total += sign * self._vector_of(term)
            asked.append(term)
            sign = 1.0
        started = time.perf_counter()
        hits = self._query(
            {"query": total.tolist(), "limit": _NEAREST + len(asked), "with_payload": True}
        )
        milliseconds = 1_000 * (time.perf_counter() - started)
        others = [hit for hit in hits if hit["payload"]["word"] not in asked][:_NEAREST]
        self._console.print(f"\n[bold]{question}[/]  ({milliseconds:.1f} ms)")
        table = Table(show_header=False)
        for hit in others:
            table.add_row(f"{hit['score']:.3f}", hit["payload"]["word"])
        self._console.print(table)

    def _vector_of(self, word: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        body = {"ids": [str(_id_of(word))], "with_vector": True}
        found = self._ask("POST", f"/collections/{COLLECTION}/points", body)
        if not found:
            raise NotFound(f"there is no vector of {word!r}")
        return np.array(found[0]["vector"], np.float64)

    def _query(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        answer = self._ask("POST", f"/collections/{COLLECTION}/points/query", body)
        hits: list[dict[str, Any]] = answer["points"]
        return hits

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        content = None if body is None else orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = {"content-type": "application/json"}
        try:
            answer = self._http.request(method, path, content=content, headers=headers)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise Unavailable(f"{method} {path}: {error}") from error
        return orjson.loads(answer.content)["result"]


def _id_of(word: str) -> UUID:
    """The same in every run, so that loading again replaces what is there."""
    return uuid5(NAMESPACE_URL, f"https://nlp.stanford.edu/projects/glove/{word}")


def cache_directory() -> Path:
    """Where downloads are kept, after the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "shoal"
