"""Results that papers print, as fractions, for comparison with measured ones."""

SOURCE = (
    "Prellberg & Kramer 2019, as printed: 24 runs on prelim, which also chose the epoch; ddof 0"
)
TEST = "one-sided Mann-Whitney U of weighted F1 against the proposal"


def _printed(low: float, mean: float, sd: float, high: float) -> dict[str, float]:
    return {"min": low, "mean": mean, "sd": sd, "max": high}


# By experiment and arm; for the ablations the paper prints only these numbers.
RESULTS: dict[tuple[str, str], dict[str, dict[str, float]]] = {
    ("prellberg2019", "proposal"): {
        "weighted_f1": _printed(0.8628, 0.8789, 0.0090, 0.8981),
        "accuracy": _printed(0.8640, 0.8796, 0.0090, 0.8988),
        "sensitivity": _printed(0.8843, 0.9201, 0.0144, 0.9450),
        "specificity": _printed(0.7531, 0.8036, 0.0239, 0.8472),
        "weighted_precision": _printed(0.8627, 0.8791, 0.0090, 0.8981),
        "weighted_recall": _printed(0.8640, 0.8796, 0.0090, 0.8988),
    },
    ("prellberg2019", "norot"): {"weighted_f1": {"mean": 0.8692, "sd": 0.0081}},
    ("prellberg2019", "nospeclr_1e-4"): {"weighted_f1": {"mean": 0.8720, "sd": 0.0070}},
}
_PROPOSAL = ("prellberg2019", "proposal")
# P values of `TEST`, by the two arms.
P_VALUES: dict[tuple[tuple[str, str], ...], str] = {
    (_PROPOSAL, ("prellberg2019", "norot")): "p < 0.001",
    (_PROPOSAL, ("prellberg2019", "nospeclr_1e-4")): "p < 0.002",
}
