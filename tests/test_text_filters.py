"""Conditions on texts, with text indexes and without, against Qdrant's own engine."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import orjson
import qdrant_edge as edge
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.payload_schema import text_index
from shard.filter import Filter, is_of_texts, matcher, with_text_indexes
from shard.model import encode_ids
from tests.texts import WORDS, analyses, as_edge, texts

ITEMS = "o[].t"
KEYS = ["t", ITEMS, "o.t"]
TOGETHER = [{"o": [{"t": ["red", "fox"]}]}]
KINDS: dict[str, Any] = {
    "text": edge.MatchText,
    "text_any": edge.MatchTextAny,
    "phrase": edge.MatchPhrase,
}

indexes = st.fixed_dictionaries(
    {},
    optional={
        **analyses,
        "min_token_len": st.integers(0, 2),
        "max_token_len": st.integers(3, 9),
        "phrase_matching": st.booleans(),
    },
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[tuple[str, str, str]]]:
    """Payloads, and conditions on them: a key, or what is nested, the kind of match and its text.

    Most texts are of the same few words, so that many match.
    """
    words = draw(st.lists(st.sampled_from(WORDS), min_size=2, max_size=3, unique=True))
    some = st.lists(st.sampled_from(words), min_size=1, max_size=3).map(" ".join) | texts
    values = some | st.lists(some | st.just(7) | st.none(), min_size=1, max_size=3)
    objects = st.fixed_dictionaries({"t": values})
    payloads = st.fixed_dictionaries({"t": values, "o": objects | st.lists(objects, max_size=3)})
    stored = draw(st.lists(payloads, min_size=4, max_size=4))
    queries = [*draw(st.lists(some, min_size=3, max_size=3)), " ".join(words)]
    return stored, list(product([*KEYS, "nested"], sorted(KINDS), queries))


class Engine:
    """Qdrant's, with one segment of points."""

    def __init__(self, directory: Path) -> None:
        vectors = edge.EdgeVectorParams(size=1, distance=edge.Distance.Dot)
        self._shard = edge.EdgeShard.create(str(directory), edge.EdgeConfig(vectors=vectors))

    def matching(
        self,
        stored: list[dict[str, Any]],
        declared: dict[str, dict[str, Any]],
        asked: list[tuple[str, str, str]],
    ) -> list[list[int]]:
        """Which of the payloads fulfil each condition, with text indexes by paths of fields."""
        update = edge.UpdateOperation
        for field, params in declared.items():
            index = edge.TextIndexParams(**as_edge(params))
            self._shard.update(update.create_field_index(field, index))
        points = [edge.Point(id=n, vector=[1.0], payload=one) for n, one in enumerate(stored)]
        self._shard.update(update.upsert_points(points))
        found = [self._found(*one) for one in asked]
        self._shard.update(update.delete_points([*range(len(stored))]))
        for field in declared:
            self._shard.update(update.delete_field_index(field))
        return found

    def _found(self, key: str, kind: str, text: str) -> list[int]:
        condition: Any = edge.FieldCondition("t" if key == "nested" else key, KINDS[kind](text))
        if key == "nested":
            condition = edge.NestedCondition("o", edge.Filter(must=[condition]))
        request = edge.ScrollRequest(filter=edge.Filter(must=[condition]), limit=100)
        return sorted(int(record.id) for record in self._shard.scroll(request)[0])


def matching(
    stored: list[dict[str, Any]],
    declared: dict[str, dict[str, Any]],
    asked: list[tuple[str, str, str]],
) -> list[list[int]]:
    keys = encode_ids([*range(len(stored))])
    found = []
    for key, kind, text in asked:
        condition: Any = {"key": "t" if key == "nested" else key, "match": {kind: text}}
        if key == "nested":
            condition = {"nested": {"key": "o", "filter": {"must": [condition]}}}
        encoded = msgspec.convert({"must": [condition]}, Filter).check("filter")
        assert is_of_texts(encoded)
        sent = with_text_indexes(
            encoded, {field: text_index(params) for field, params in declared.items()}
        )
        mask = matcher(sent).matches(keys, [orjson.dumps(one) for one in stored])
        found.append(mask.nonzero()[0].tolist())
    return found


def test_with_an_index_the_same_texts_match_as_in_qdrant() -> None:
    with TemporaryDirectory() as directory:
        engine = Engine(Path(directory))

        # Texts of an array count as one, but not of one object for itself.
        @example((TOGETHER, [(ITEMS, "text", "red fox"), ("nested", "text", "red fox")]), ITEMS, {})
        @settings(deadline=None, max_examples=300)
        @given(cases(), st.sampled_from(KEYS), indexes)
        def same(case: Any, field: str, params: dict[str, Any]) -> None:
            stored, asked = case
            declared = {field: params}
            assert matching(stored, declared, asked) == engine.matching(stored, declared, asked)

        same()


def test_without_an_index_the_same_texts_match_as_in_qdrant() -> None:
    with TemporaryDirectory() as directory:
        engine = Engine(Path(directory))

        @settings(deadline=None, max_examples=1_000)
        @given(cases())
        def same(case: Any) -> None:
            stored, asked = case
            assert matching(stored, {}, asked) == engine.matching(stored, {}, asked)

        same()
