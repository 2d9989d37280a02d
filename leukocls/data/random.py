"""Every random stream of the project: generators and seeds that depend on their arguments alone.

Nothing keeps a state between calls, so workers, batch size and resuming change no number.
"""

import hashlib

import numpy as np

# Streams of one (seed, epoch), so that the order of the cells and their augmentation are
# independent. A step that was added later has its own stream: older recipes keep their numbers.
AUGMENT_STREAM, ORDER_STREAM, STEPS_STREAM, HOLES_STREAM, MIXUP_STREAM = range(5)

# Streams of one split seed, so that folds, subsets of the training set and the draws of the leakage
# lab are independent.
FOLD_STREAM, SUBSET_STREAM, LEAKAGE_STREAM = range(3)
# Streams of one seed of synthetic cells. Each cell has one more, above all of these, to be drawn.
(
    SUBJECT_STREAM,
    SUBJECT_EFFECT_STREAM,
    FIELD_EFFECT_STREAM,
    NORMAL_STREAM,
    UNIFORM_STREAM,
    PLACEMENT_STREAM,
    FIELD_STREAM,
    ORDER_OF_FILES_STREAM,
    REPROCESSED_STREAM,
) = range(9)
# Streams of one cell by its name, so that the ways of corrupting its image are independent.
NOISE_STREAM, STAIN_STREAM, SHIFT_STREAM = range(3)


def random_numbers(seed: int, stream: int) -> np.random.Generator:
    """Generator of one stream of one seed.

    Philox keyed by (seed, stream), so that all streams are independent (Salmon et al., SC 2011).
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


def generator(seed: int, epoch: int, stream: int, rank: int = 0) -> np.random.Generator:
    """Generator of one stream of one epoch (or, for mixup, of one step).

    Philox keyed by (seed, epoch), with the stream in its counter (Salmon et al., SC 2011).
    """
    key = np.array([seed, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, rank, stream]))


def cell_generator(cell: str, stream: int) -> np.random.Generator:
    """Generator of one stream of one cell, whatever data set or order it is read in.

    Philox keyed by 128 bits of the name's sha256 (Salmon et al., SC 2011).
    """
    digest = hashlib.sha256(cell.encode()).digest()
    key = np.frombuffer(digest[:16], "<u8").astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, stream]))


def continued_seed(seed: int, runs_before: int) -> int:
    """The seed for data order, augmentation and dropout of a run that continues other runs.

    Such a run counts its epochs from 0 again, but must not draw the numbers of the others again.

    Args:
        runs_before: number of runs that it continues; 0 leaves the seed as it is.
    """
    if not runs_before:
        return seed
    return int(np.random.SeedSequence([seed, runs_before]).generate_state(1)[0])


def batch_seed(seed: int, batch: int, rank: int) -> int:
    """The seed in [0, 2⁶⁴) for dropout and similar layers in one training batch of one process.

    Args:
        batch: number of batches trained before this one, over all epochs.
        rank: index of the process.
    """
    return int(np.random.SeedSequence([seed, batch, rank]).generate_state(1, np.uint64)[0])
