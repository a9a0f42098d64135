"""How relevant what is found is, to people's judgement.

Needs ``scripts/bench/install-peers``, for the model that embeds texts.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from router.demo import cache_directory
from scripts.bench.peers import ENVIRONMENT
from shard.model import Vectors


def embed(texts: Sequence[str]) -> Vectors:
    """all-MiniLM-L6-v2's vectors of ``texts``, (n, 384) float32 of unit length.

    They are kept in the cache directory. Raises CalledProcessError.
    """
    encoded = json.dumps(list(texts)).encode()
    path = cache_directory() / f"minilm-{hashlib.sha256(encoded).hexdigest()[:16]}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as folder:
            given, made = Path(folder) / "texts.json", Path(folder) / "vectors.npy"
            given.write_bytes(encoded)
            script = Path(__file__).with_name("minilm.py")
            subprocess.run([ENVIRONMENT / "bin" / "python", script, given, made], check=True)
            made.rename(path)
    vectors: Vectors = np.load(path)
    return vectors
