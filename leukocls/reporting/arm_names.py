"""Short names of arms on a page: of what is in their directories' names, only what tells apart."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from leukocls.artifacts.identity import name_parts


class _Parts(NamedTuple):
    """The parts of an arm's directory name; `cut` is true if overrides may be missing."""

    experiment: str
    ablation: str
    overrides: dict[str, str]
    cut: bool


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each arm's name without what all arms of its experiment, or of its ablation there, share.

    A name stays whole where the short one would be another arm's as well.

    Args:
        names: of arms, `ablation,overrides` with or without `experiment/` before it.
    """
    parts = {name: _parts(name) for name in names}

    def short(own: _Parts) -> str:
        beside = [one for one in parts.values() if one.experiment == own.experiment]
        head = [own.ablation]
        if own.experiment:
            several = len({one.ablation for one in beside}) > 1
            head = [f"{own.experiment}/{own.ablation}" if several else own.experiment]
        alike = [one for one in beside if one.ablation == own.ablation]
        return ",".join(head + [
            f"{key}={value}"
            for key, value in own.overrides.items()
            if any(one.overrides.get(key, value if one.cut else None) != value for one in alike)
        ])  # fmt: skip

    found = {name: short(own) for name, own in parts.items()}
    counts = Counter(found.values())
    return {name: one if counts[one] == 1 else name for name, one in found.items()}


def _parts(name: str) -> _Parts:
    experiment, _, arm = name.rpartition("/")
    head, overrides = name_parts(arm)
    ablation, cut, _ = head.partition("…")
    return _Parts(experiment, ablation, overrides, bool(cut))


def with_short_names(document: dict[str, Any]) -> dict[str, Any]:
    """A report's document with short names of arms; `full_names` has the others by these.

    Args:
        document: of `leukocls.reporting.document.report_document`.
    """
    short = short_names([arm["name"] for arm in document["comparison"]["arms"]])

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {short.get(key, key): renamed(one) for key, one in value.items()}
        if isinstance(value, list):
            return [renamed(one) for one in value]
        return short.get(value, value) if isinstance(value, str) else value

    return renamed(document) | {"full_names": {one: name for name, one in short.items()}}
