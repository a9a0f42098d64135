"""``shoal ingest`` and ``shoal export``: start a job through the API, and watch it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from shard.errors import InvalidInput, Unavailable

LOOK_SECONDS = 0.5
GIVE_UP_SECONDS = 120.0
_OVER = ("done", "failed", "cancelled")


def run(
    url: str,
    collection: str,
    kind: str,
    body: dict[str, Any],
    *,
    key: str | None = None,
    watch: bool,
) -> bool:
    """Start the job, an ``ingest`` or ``export``, of ``body``; whether it has gone well so far.
    ``key`` is for a service that wants one.

    Raises InvalidInput where the service refuses it, and Unavailable.
    """
    console = Console()
    for place in ("source", "destination"):
        if place in body and "://" not in body[place]:
            body = {**body, place: str(Path(body[place]).absolute())}
    where = f"/collections/{quote(collection, safe='')}/{kind}"
    headers = {} if key is None else {"api-key": key}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        job = _call(client, "POST", where, body)
        console.print(f"Job {job['id']}", highlight=False)
        if not watch:
            return True
        job = _watch(client, where, job, console)
    console.print(_told(job), highlight=False, soft_wrap=True)
    return bool(job["state"] == "done")


def _watch(
    client: httpx.Client, where: str, job: dict[str, Any], console: Console
) -> dict[str, Any]:
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    reached = time.monotonic()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(job["state"], total=None, rate="")
        while job["state"] not in _OVER:
            time.sleep(LOOK_SECONDS)
            try:
                job = _call(client, "GET", f"{where}/{job['id']}")
                reached = time.monotonic()
            except Unavailable:
                # The job goes on without the router.
                if time.monotonic() - reached > GIVE_UP_SECONDS:
                    raise
                continue
            took = time.time() - (job["started"] or time.time())
            rows = job["rows_read"] if "rows_read" in job else job["rows"]
            rate = f"{rows / took:,.0f} rows/s" if took > 1 else ""
            progress.update(
                task,
                description=job["state"],
                completed=rows,
                total=job.get("rows_total") or None,
                rate=rate,
            )
    return job


def _told(job: dict[str, Any]) -> str:
    lines = []
    match job["state"]:
        case "done" if job.get("same_as"):
            lines.append(f"Job {job['same_as']} has loaded these files already: nothing to do.")
        case "done":
            took = job["finished"] - job["started"]
            rows = job["rows_loaded"] if "rows_loaded" in job else job["rows"]
            lines.append(f"{rows:,} rows in {took:,.1f} s.")
        case state:
            lines.append(f"The job {'has failed' if state == 'failed' else 'is cancelled'}.")
    if job["error"] and job["state"] != "done":
        lines.append(job["error"])
    if job.get("bad_rows"):
        lines.append(f"{job['bad_rows']:,} bad rows, of which the first:")
        lines += [f"  {one['file']}, row {one['row']}: {one['reason']}" for one in job["bad"]]
        lines.append(f"All of them are in the object store under ingest/{job['id']}/rejects/.")
    if job.get("ignored_columns"):
        lines.append(f"Columns passed over: {', '.join(job['ignored_columns'])}")
    return "\n".join(lines)


def _call(
    client: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    try:
        response = client.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise Unavailable(f"{client.base_url}: {error}") from error
    try:
        answered = response.json()
    except ValueError:
        answered = {}
    if response.status_code >= 500 or not answered:
        raise Unavailable(f"{client.base_url}: {response.status_code} {response.text[:200]}")
    if response.is_error:
        raise InvalidInput(answered["status"]["error"])
    result: dict[str, Any] = answered["result"]
    return result
