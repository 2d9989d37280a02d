"""Every random stream: generators and seeds that are functions of their arguments alone.

No stream keeps a state between calls, so that workers, batch size and resuming change nothing.
"""

import numpy as np

# Streams of one (seed, epoch) key, so that the order of cells and their pixels are independent.
# Later steps have streams of their own: what a recipe without them draws never moves.
AUGMENT_STREAM, ORDER_STREAM, STEPS_STREAM, HOLES_STREAM, MIXUP_STREAM = range(5)

# Streams of one split seed, so that folds and subsets are independent.
FOLD_STREAM, SUBSET_STREAM = 0, 1
# Streams of one seed of synthetic cells. Each cell adds a stream of its own, above all of these.
(
    SUBJECT_STREAM,
    SUBJECT_EFFECT_STREAM,
    FIELD_EFFECT_STREAM,
    NORMAL_STREAM,
    UNIFORM_STREAM,
    PLACEMENT_STREAM,
    FIELD_STREAM,
    ORDER_OF_FILES_STREAM,
) = range(8)


def random_numbers(seed: int, stream: int) -> np.random.Generator:
    """Generator of one stream of one seed, independent of all others (Philox: Salmon 2011)."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


def generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Generator of one stream of one epoch's data (Philox: Salmon et al., SC 2011)."""
    key = np.array([seed, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, stream]))


def continued_seed(seed: int, runs_before: int) -> int:
    """Seed of a run that continues `runs_before` others (0: the seed itself).

    Such a run counts its epochs from 0 again, and must not draw the same numbers again.
    """
    if not runs_before:
        return seed
    return int(np.random.SeedSequence([seed, runs_before]).generate_state(1)[0])


def batch_seed(seed: int, batch: int, rank: int) -> int:
    """Seed in [0, 2⁶⁴) of dropout and its like in one training batch of one rank.

    Args:
        batch: number of batches trained before this one, over all epochs.
        rank: index of the process.
    """
    return int(np.random.SeedSequence([seed, batch, rank]).generate_state(1, np.uint64)[0])
