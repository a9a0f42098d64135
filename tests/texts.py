"""Texts, and ways to take them apart, as hypothesis makes them and as Qdrant's engine has them."""

from __future__ import annotations

from typing import Any

import qdrant_edge as edge
from hypothesis import strategies as st
from qdrant_client import models

LANGUAGES = [one.value for one in models.Language]
STEMMED = [one.value for one in models.SnowballLanguage if one.value != "armenian"]
WORDS = [
    "the", "The", "running", "runs", "flies", "café", "Été", "straße", "été", "und", "Häuser",
    "getUserName", "HTTPServer2", "snake_Case_x", "_a", "1_000", "0xFF", "don't", "x", "ação",
    "и", "книги", "Книга", "και", "ΟΔΟΣ", "في", "كِتَاب", "हिन्दी", "வணக்கம்", "İstanbul", "日本語",
    "½", "a²", "é̈", "🙂", "\x1cb", "\u2028", "long" * 12,
]  # fmt: skip
texts = st.lists(
    st.sampled_from(WORDS) | st.text("aAbB1_ éß字ि.-", max_size=6), max_size=12
).flatmap(lambda words: st.sampled_from([" ", ", ", "\n", "-"]).map(lambda by: by.join(words)))
languages = st.sampled_from([one for one in LANGUAGES if one != "japanese"])
_custom = st.lists(st.sampled_from(WORDS), max_size=3)
analyses: dict[str, st.SearchStrategy[Any]] = {
    "tokenizer": st.sampled_from(["word", "whitespace", "prefix", "code"]),
    "lowercase": st.booleans(),
    "ascii_folding": st.booleans(),
    "stopwords": languages
    | st.fixed_dictionaries({}, optional={"languages": st.lists(languages), "custom": _custom}),
    "stemmer": st.just({"type": "none"})
    | st.fixed_dictionaries({"type": st.just("snowball"), "language": st.sampled_from(STEMMED)}),
    "min_token_len": st.integers(0, 6),
    "max_token_len": st.integers(0, 8),
}
"""Parameters of an analysis, by name."""


def as_edge(given: dict[str, Any]) -> dict[str, Any]:
    """These parameters, and others among them, as the embedded engine takes them."""

    def language(name: str) -> Any:
        return getattr(edge.Language, name.capitalize())

    config = dict(given)
    if "tokenizer" in given:
        config["tokenizer"] = getattr(edge.TokenizerType, given["tokenizer"].capitalize())
    match given.get("stopwords"):
        case str(name):
            config["stopwords"] = language(name)
        case dict(sets):
            config["stopwords"] = edge.StopwordsSet(
                languages=set(map(language, sets.get("languages", []))),
                custom=set(sets.get("custom", [])),
            )
    match given.get("stemmer"):
        case {"type": "none"}:
            config["stemmer"] = edge.DisabledStemmer()
        case {"language": name}:
            stemmed = getattr(edge.SnowballLanguage, name.capitalize())
            config["stemmer"] = edge.SnowballParams(stemmed)
    return config
