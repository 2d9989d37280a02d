"""Rules that select an epoch, by the names that run.json records."""


def best_weighted_f1(history: list[float]) -> int:
    """The epoch with the highest weighted F1, the first of them if there are several."""
    return max(range(len(history)), key=lambda epoch: (history[epoch], -epoch))


def last(history: list[float]) -> int:
    """The last epoch."""
    return len(history) - 1


BEST_THRESHOLD = "best_weighted_f1"  # a threshold that is chosen on the selection set
# Each rule takes the selection set's weighted F1 by epoch (0 = before training).
RULES = {"best_weighted_f1": best_weighted_f1, "last": last}
