"""Random numbers that a seed and a stream decide, and nothing else."""

import numpy as np


def random_numbers(seed: int, stream: int) -> np.random.Generator:
    """Generator of one stream of one seed, independent of all others (Philox: Salmon 2011)."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))
