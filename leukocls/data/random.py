"""Every random stream: generators and seeds that a seed and a stream decide, and nothing else."""

import numpy as np


def random_numbers(seed: int, stream: int) -> np.random.Generator:
    """Generator of one stream of one seed, independent of all others (Philox: Salmon 2011)."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


def continued_seed(seed: int, runs_before: int) -> int:
    """Seed of order, augmentation and dropout of a run that continues `runs_before` others.

    Such a run counts its epochs from 0 again, and must not repeat the draws of those before it.
    """
    if not runs_before:
        return seed
    return int(np.random.SeedSequence([seed, runs_before]).generate_state(1)[0])


def batch_seed(seed: int, batch: int, rank: int) -> int:
    """Seed of dropout and the like in one training batch, counted over all epochs, on one rank."""
    state = np.random.SeedSequence([seed, batch, rank]).generate_state(1, np.uint64)
    return int(state[0])
