"""Texts as sparse vectors whose products are BM25 scores: what Qdrant makes of a document of the
model ``qdrant/bm25``.

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009). A text that
is stored becomes the weights of its terms, one that is searched for becomes ones; how rare a term
is comes in by the collection's ``idf`` modifier. Terms are numbered by MurmurHash3, so that vectors
are those that Qdrant makes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, TypeAlias

import mmh3
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from shard.text import (
    WITH_STOPWORDS,
    Analysis,
    Analyzer,
    NoStemmer,
    Snowball,
    check_stopwords,
    has_stemmer,
)

MODEL = "qdrant/bm25"
"""Clients write it in letters of either case."""

SparseVector: TypeAlias = tuple[NDArray[np.uint32], NDArray[np.float32]]
"""Indices, ascending, and the value at each, both (n,)."""


class Bm25Options(Analysis, frozen=True, kw_only=True):
    """Qdrant's ``Bm25Config``. None is its default, which stands in brackets below."""

    k: Annotated[float, Meta(ge=0, le=float(np.finfo(np.float32).max))] | None = None
    """How much more a term weighs that comes more than once [1.2]."""
    b: Annotated[float, Meta(ge=0, le=1)] | None = None
    """How much less the terms of long texts weigh [0.75]."""
    avg_len: Annotated[float, Meta(gt=0)] | None = None
    """Terms in a text of usual length [256]."""
    language: str | None = None
    """Whose stopwords and stemmer to use where none are given, or ``none`` [english]."""

    def check(self, field: str) -> None:
        """Raises InvalidInput, naming what is not supported below ``field``."""
        if self.language not in (None, "none") and not has_stemmer(self.language):
            check_stopwords(self.language, f"{field}.language")
        super().check(field)

    @property
    def analysis(self) -> Analysis:
        """What they say of how a text becomes terms."""
        language = self.language or "english"
        stopwords, stemmer = self.stopwords, self.stemmer
        if stopwords is None and language in WITH_STOPWORDS:
            stopwords = language
        if stemmer is None:
            stemmer = Snowball(language) if has_stemmer(language) else NoStemmer()
        return Analysis(
            tokenizer=self.tokenizer,
            lowercase=self.lowercase,
            ascii_folding=self.ascii_folding,
            stopwords=stopwords,
            stemmer=stemmer,
            min_token_len=self.min_token_len,
            max_token_len=self.max_token_len,
        )


def embed_document(text: str, options: Bm25Options | None = None) -> SparseVector:
    """Each term's weight, f (k + 1) / (f + k (1 - b + b n / avg_len)), where f of the n terms of
    ``text`` are that one. ``options`` are checked ones."""
    options = options or Bm25Options()
    k = 1.2 if options.k is None else options.k
    b = 0.75 if options.b is None else options.b
    usual = 256.0 if options.avg_len is None else options.avg_len
    terms = _terms(text, options, query=False)
    indices, counts = np.unique(terms, return_counts=True)
    # Multiplied first, so that with k = 0 no avg_len, however small, makes it infinite.
    weights = counts * (k + 1) / (counts + (k * (1 - b) + k * b * len(terms) / usual))
    return indices, weights.astype(np.float32)


def embed_query(text: str, options: Bm25Options | None = None) -> SparseVector:
    """A one for each term. ``options`` are checked ones."""
    indices = np.unique(_terms(text, options or Bm25Options(), query=True))
    return indices, np.ones(len(indices), np.float32)


def _terms(text: str, options: Bm25Options, *, query: bool) -> NDArray[np.uint32]:
    """The number of every term, (n,), in the order of the text."""
    return np.array(_analyzer(options, query).terms(text), np.uint32)


@lru_cache(maxsize=8)
def _analyzer(options: Bm25Options, query: bool) -> Analyzer[int]:
    return Analyzer(options.analysis, query=query, of=_number)


def _number(term: str) -> int:
    return abs(mmh3.hash(term))
