"""Scores of points by how near they are to examples, as Qdrant's recommend, discover and context
queries have them. Of the similarities these take, and of the scores they give, higher is nearer,
whatever the distance.

Similarities are Qdrant's own: products of vectors (prepared, for cosine; 0 for sparse ones that
have no component in common), for Euclid the negative square of the distance, for Manhattan the
negative distance; of multivectors the sum of the best of these for each of the example's.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec
import numpy as np

from shard.errors import InvalidInput
from shard.model import Scores

_MARGIN = np.finfo(np.float32).eps
_LIMIT = np.finfo(np.float32).max


class Scoring(StrEnum):
    BEST_SCORE = "best_score"
    """The similarity to the nearest example, made to lie between 0 and 1; negated where that is a
    negative one."""
    SUM_SCORES = "sum_scores"
    """Similarities to positive examples, less those to negative ones."""
    DISCOVER = "discover"
    """In how many pairs more the positive example is nearer than the negative one; among equals
    by the similarity to the target."""
    CONTEXT = "context"
    """What is missing for each pair's positive example to be the nearer one: 0 where nothing is."""


class Examples(msgspec.Struct, frozen=True):
    """How to score, and what the rows of the example vectors are: the target, for discover alone,
    then the positive examples, then the negative ones. For discover and context the first positive
    one and the first negative one are a pair, and so on."""

    scoring: Scoring
    positives: int
    negatives: int

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @staticmethod
    def decode(data: bytes) -> Examples:
        """Raises InvalidInput."""
        try:
            return _decoder.decode(data)
        except msgspec.DecodeError as error:
            raise InvalidInput(f"examples: {error}") from error

    @property
    def count(self) -> int:
        """Of all example vectors."""
        return self._target + self.positives + self.negatives

    @property
    def _target(self) -> int:
        return 1 if self.scoring is Scoring.DISCOVER else 0

    def scores(self, similarities: Scores) -> Scores:
        """Of n points, (n,), by their ``similarities`` to the examples, (count, n), all finite."""
        bounds = [self._target, self._target + self.positives]
        target, positive, negative = np.split(similarities, bounds)
        scores: Scores
        with np.errstate(over="ignore", invalid="ignore"):
            match self.scoring:
                case Scoring.BEST_SCORE:
                    best = positive.max(axis=0, initial=-np.inf)
                    worst = negative.max(axis=0, initial=-np.inf)
                    near = _between_0_and_1(np.maximum(best, worst))
                    scores = np.where(best > worst, near, -near)
                case Scoring.SUM_SCORES:
                    scores = positive.sum(axis=0) - negative.sum(axis=0)
                    scores = np.nan_to_num(scores, copy=False)
                case Scoring.DISCOVER:
                    ranks = np.sign(positive - negative).sum(axis=0)
                    scores = ranks + _between_0_and_1(target[0])
                case Scoring.CONTEXT:
                    missing = np.clip(positive - negative - _MARGIN, -_LIMIT, 0)
                    scores = _sigmoid(missing).sum(axis=0)
        return scores.astype(np.float32)


# Made before threads use it: see `shard.objects.document`.
_decoder = msgspec.json.Decoder(Examples)


def _sigmoid(values: Scores) -> Scores:
    """Between -1 and 1, and quick."""
    squeezed: Scores = values / (1 + np.abs(values))
    return squeezed


def _between_0_and_1(values: Scores) -> Scores:
    squeezed: Scores = _sigmoid(values) * np.float32(0.5) + np.float32(0.5)
    return squeezed
