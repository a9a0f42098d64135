"""BM25 vectors against Qdrant's own, which its embedded edition makes, and by hand."""

from __future__ import annotations

from typing import Any

import mmh3
import msgspec
import numpy as np
import orjson
import pytest
import qdrant_edge as edge
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import models

from router.api import wire
from router.api.bm25 import Bm25Options, embed_document, embed_query
from router.errors import Malformed, OutOfRange
from shard.ascii_folding import fold
from shard.errors import InvalidInput
from shard.text import stopwords
from tests.texts import LANGUAGES, STEMMED, analyses, as_edge, languages, texts

# What a newer Unicode has may be letters to one and nothing to the other.
assigned = st.characters(exclude_categories=["Cn", "Cs"])


class Document(msgspec.Struct):
    options: Bm25Options | None = None


decode = wire.Decoder(Document)


def options(**given: Any) -> Bm25Options:
    decoded = decode(orjson.dumps({"options": given})).options
    assert decoded is not None
    decoded.check("options")
    return decoded


def number(term: str) -> int:
    return abs(mmh3.hash(term))


def terms(text: str, **given: Any) -> set[int]:
    return set(embed_document(text, options(**given))[0].tolist())


def numbers(*expected: str) -> set[int]:
    return set(map(number, expected))


def test_a_terms_number_is_its_murmur3_without_sign() -> None:
    # 0x248bfa47 and 0xba6bd213, as published; the second is negative in 32 bits.
    indices, values = embed_query("test hello", options(language="none"))
    assert indices.tolist() == [0x248BFA47, 2**32 - 0xBA6BD213]
    assert values.tolist() == [1.0, 1.0]
    assert (indices.dtype.name, values.dtype.name) == ("uint32", "float32")


def test_a_documents_weights_are_those_of_the_formula() -> None:
    # "heat" twice and "wing" once: n = 3.
    indices, values = embed_document("the heat of a wing, heat", options(avg_len=6, k=1.2, b=0.75))
    length = 1.2 * (0.25 + 0.75 * 3 / 6)
    expected = {number("heat"): 2 * 2.2 / (2 + length), number("wing"): 2.2 / (1 + length)}
    assert dict(zip(indices.tolist(), values.tolist(), strict=True)) == pytest.approx(expected)
    assert (np.diff(indices.astype(np.int64)) > 0).all()


def test_the_defaults_are_qdrants() -> None:
    _, values = embed_document("flutter")
    assert values.tolist() == pytest.approx([2.2 / (1 + 1.2 * (0.25 + 0.75 / 256))])
    spelled = options(k=1.2, b=0.75, avg_len=256, tokenizer="word", language="english")
    for one, other in zip(
        embed_document("The wings"), embed_document("The wings", spelled), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_query_has_a_one_for_each_term() -> None:
    indices, values = embed_query("wings and a wing, and heat")
    assert set(indices.tolist()) == numbers("wing", "heat")
    assert values.tolist() == [1.0, 1.0]


def test_nothing_is_left_of_stopwords() -> None:
    for indices, values in (embed_document("the of and"), embed_query(""), embed_document("?!")):
        assert (indices.size, indices.dtype.name) == (0, "uint32")
        assert (values.size, values.dtype.name) == (0, "float32")


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        ("running runs", {}, ["run"]),
        ("running runs", {"stemmer": {"type": "none"}}, ["running", "runs"]),
        ("the running", {"language": "none"}, ["the", "running"]),
        ("die Häuser", {"language": "german"}, ["haus"]),
        ("die Häuser", {"stemmer": {"type": "snowball", "language": "german"}}, ["die", "haus"]),
        ("the der wing", {"stopwords": "german"}, ["the", "wing"]),
        ("the Wing", {"stopwords": {"custom": ["WING"]}}, ["the"]),
        ("the der wing", {"stopwords": {"languages": ["german", "english"]}}, ["wing"]),
        ("The the", {"lowercase": False, "stemmer": {"type": "none"}}, ["The"]),
        ("ação cafés", {"ascii_folding": True}, ["acao", "cafe"]),
        ("a bc def", {"language": "none", "min_token_len": 2, "max_token_len": 2}, ["bc"]),
        ("wing-tip x.y", {"tokenizer": "whitespace"}, ["wing-tip", "x.i"]),
        ("wing", {"tokenizer": "prefix", "min_token_len": 2}, ["wi", "win", "wing"]),
        ("getUserId", {"tokenizer": "code"}, ["get", "user", "id", "getuserid"]),
        ("हिन्दी", {"language": "none"}, ["हिन", "दी"]),
    ],
)
def test_options_do_what_they_say(text: str, given: dict[str, Any], expected: list[str]) -> None:
    assert terms(text, **given) == numbers(*expected)


def test_only_the_longest_prefix_is_searched_for() -> None:
    given = options(tokenizer="prefix", max_token_len=3)
    assert set(embed_query("wings the", given)[0].tolist()) == numbers("win", "the")


def test_every_language_has_stopwords_or_a_stemmer() -> None:
    for language in {*LANGUAGES, *STEMMED}:
        assert embed_query("qdrant", options(language=language))[0].size == 1
    for language in LANGUAGES:
        assert len(stopwords(language)) > 40


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"language": "klingon"}, InvalidInput, "options.language: 'klingon' is not supported, ex"),
        ({"language": "armenian"}, InvalidInput, "options.language: 'armenian' is not supported"),
        ({"stopwords": "x"}, InvalidInput, "options.stopwords: 'x' is not supported, expected one"),
        (
            {"stopwords": {"languages": ["english", "x"]}},
            InvalidInput,
            "options.stopwords.languages[1]: 'x' is not supported",
        ),
        (
            {"stemmer": {"type": "snowball", "language": "armenian"}},
            InvalidInput,
            "options.stemmer.language: 'armenian' has no stemmer here",
        ),
        (
            {"stemmer": {"type": "porter"}},
            Malformed,
            "options.stemmer.type: invalid value 'porter'",
        ),
        ({"stemmer": {"type": "snowball"}}, Malformed, "options.stemmer: object missing required"),
        (
            {"tokenizer": "multilingual"},
            InvalidInput,
            "options.tokenizer: `multilingual` is not supported, expected `word`",
        ),
        ({"tokenizer": "letters"}, Malformed, "options.tokenizer: 'letters' is not supported, exp"),
        ({"k": -1}, OutOfRange, "options.k: expected `float` >= 0"),
        ({"k": 1e39}, OutOfRange, "options.k: expected `float` <= 3.4"),
        ({"b": 1.5}, OutOfRange, "options.b: expected `float` <= 1"),
        ({"avg_len": 0}, OutOfRange, "options.avg_len: expected `float` > 0"),
        ({"min_token_len": -1}, OutOfRange, "options.min_token_len: expected `int` >= 0"),
        ({"lowercase": "yes"}, Malformed, "options.lowercase: expected `bool"),
        ({"k1": 1.2}, Malformed, "options.k1: unknown or unsupported field"),
    ],
)
def test_what_is_wrong_is_named(
    given: dict[str, Any], error: type[InvalidInput], message: str
) -> None:
    with pytest.raises(error) as raised:
        options(**given)
    assert str(raised.value).startswith(message)
    assert type(raised.value) is error


def test_what_the_client_sends_is_understood() -> None:
    config = models.Bm25Config(
        tokenizer=models.TokenizerType.PREFIX,
        language="german",
        stopwords=models.StopwordsSet(languages=[models.Language.GERMAN], custom=["x"]),
        stemmer=models.SnowballParams(
            type=models.Snowball.SNOWBALL, language=models.SnowballLanguage.GERMAN
        ),
        min_token_len=2,
    )
    sent = orjson.loads(config.model_dump_json())
    assert options(**sent) == options(
        k=1.2,
        b=0.75,
        avg_len=256,
        tokenizer="prefix",
        language="german",
        stopwords={"languages": ["german"], "custom": ["x"]},
        stemmer={"type": "snowball", "language": "german"},
        min_token_len=2,
    )


@pytest.mark.parametrize("word", ["x" * 1_000_000, "யா" * 500_000, "a1B_" * 250_000])
@pytest.mark.parametrize("tokenizer", ["word", "prefix", "code"])
@pytest.mark.timeout(20)
def test_a_word_without_end_takes_no_time_without_end(word: str, tokenizer: str) -> None:
    indices, _ = embed_document(word, options(language="tamil", tokenizer=tokenizer))
    assert 1 <= indices.size <= 256


@pytest.mark.parametrize("given", [{"k": 3.4e38}, {"k": 0, "avg_len": 5e-324}, {"avg_len": 1e308}])
def test_weights_are_always_numbers(given: dict[str, Any]) -> None:
    _, values = embed_document("wing wing heat", options(**given))
    assert np.isfinite(values).all() and (values >= 0).all()


configs = st.fixed_dictionaries(
    {},
    optional={
        "k": st.floats(0, 10),
        "b": st.floats(0, 1),
        "avg_len": st.floats(0.1, 1_000),
        "language": languages,
        **analyses,
    },
)


def as_bm25(given: dict[str, Any]) -> edge.Bm25:
    """Qdrant's model with these options."""
    return edge.Bm25(edge.Bm25Config(**as_edge(given)))


@settings(deadline=None, max_examples=2_000)
@given(texts, configs)
def test_vectors_are_those_of_qdrant(text: str, given: dict[str, Any]) -> None:
    chosen, qdrant = options(**given), as_bm25(given)
    for found, expected in (
        (embed_document(text, chosen), qdrant.embed_document(text)),
        (embed_query(text, chosen), qdrant.embed_query(text)),
    ):
        assert found[0].tolist() == list(expected.indices)
        np.testing.assert_allclose(found[1], expected.values, rtol=2e-7)


@settings(deadline=None, max_examples=500)
@given(st.sampled_from(STEMMED), st.text(assigned, max_size=30))
def test_any_text_is_taken_apart_as_by_qdrant(language: str, text: str) -> None:
    given = {"stemmer": {"type": "snowball", "language": language}, "stopwords": {}}
    assert embed_document(text, options(**given))[0].tolist() == list(
        as_bm25(given).embed_document(text).indices
    )


def test_letters_in_use_are_folded_as_by_qdrant() -> None:
    given = {"language": "english", "stopwords": {}, "stemmer": {"type": "none"}}
    qdrant = as_bm25({**given, "ascii_folding": True, "lowercase": False})
    used = [*range(0xC0, 0x180), *range(0x1CD, 0x1DD), *range(0x218, 0x21C), *range(0x1EA0, 0x1EFA)]
    for letter in map(
        chr, [*used, *range(0x391, 0x3CA), *range(0x400, 0x460), *map(ord, "əßﬁＡ２²")]
    ):
        if letter.isalpha() and letter not in "ĸŉ":
            assert qdrant.embed_query(letter).indices == [number(fold(letter))], letter
