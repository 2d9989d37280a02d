"""Rules that choose an epoch, and how a threshold may be chosen: named, so that a run can say."""


def best_weighted_f1(history: list[float]) -> int:
    """The first epoch of the highest weighted F1: a later one must be strictly greater."""
    return max(range(len(history)), key=lambda epoch: (history[epoch], -epoch))


def last(history: list[float]) -> int:
    """The last epoch, whatever it scored."""
    return len(history) - 1


BEST_THRESHOLD = "best_weighted_f1"  # chosen on the selection set instead of a fixed one
# Rules that choose an epoch from the selection set's weighted F1 by epoch (0 = before training).
RULES = {"best_weighted_f1": best_weighted_f1, "last": last}
