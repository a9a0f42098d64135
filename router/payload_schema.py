"""What a collection declares of the fields of its payloads, and what that means for filters."""

from __future__ import annotations

from typing import Any

import msgspec

from cluster.catalog import Collection
from shard.filter import TextIndex, is_of_texts, with_text_indexes

SCHEMA = "payload_schema"
"""Among a collection's settings: by paths of fields, their ``data_type`` and ``params``."""


def text_index(params: dict[str, Any]) -> TextIndex:
    """What the parameters of an index of texts say of how they match."""
    names = TextIndex.__struct_fields__
    return msgspec.convert({name: params[name] for name in names if name in params}, TextIndex)


def text_indexes(collection: Collection) -> dict[str, TextIndex]:
    """Those of the collection, by paths of fields."""
    return {
        field: text_index(declared["params"] or {})
        for field, declared in collection.settings.get(SCHEMA, {}).items()
        if declared["data_type"] == "text"
    }


def indexed(filter: bytes, collection: Collection) -> bytes:
    """A filter that `Filter.check` has encoded, as it goes to the collection's shards."""
    if not is_of_texts(filter):
        return filter
    indexes = text_indexes(collection)
    return with_text_indexes(filter, indexes) if indexes else filter
