"""Dates and times, in payloads and in requests."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = re.compile(
    r"(\d{4})-(\d\d?)-(\d\d?)(?:[Tt ](\d\d?):(\d\d?)"
    r"(?::(\d\d?)(?:\.(\d+))?(?: ?(?:[Zz]|([+-]\d\d(?::?[0-5]\d)?)))?)?)?",
    re.ASCII,
)


def parse_time(text: str) -> datetime | None:
    """A date and time as Qdrant reads it, UTC unless it says otherwise; None for what is none."""
    text = text.lstrip()
    text = text.removesuffix(" UTC") + "Z" if text.endswith(" UTC") else text
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    year, *parts, fraction, offset = found.groups("")
    month, day, hour, minute, second = (part.zfill(2) for part in parts)
    try:
        time = datetime.fromisoformat(
            f"{year}-{month}-{day}T{hour}:{minute}:{second}.{fraction or 0}{offset}"
        )
    except ValueError:
        return None
    return time if offset else time.replace(tzinfo=UTC)


def microseconds(time: datetime) -> int:
    """From 1970 on."""
    since = time - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
