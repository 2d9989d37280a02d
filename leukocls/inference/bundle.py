"""A bundle: trained networks in a folder that others can open, and the checks on opening it.

Nothing in it is pickled. `leukocls.json` describes the networks and holds the sha256 of every other
file, and of itself; a network that timm can hold is in timm's own format beside it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leukocls.artifacts.marks import Mark
from leukocls.artifacts.record import DIGEST, record_digest, scaling
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.common.files import sha256_file
from leukocls.data.images import LARGEST
from leukocls.data.store import LARGEST as STORED
from leukocls.evaluation.conformal import USUAL, usable_levels

FORMAT = 1  # raise it when an older version of leukocls would misread a bundle
DOCUMENT = "leukocls.json"
USE = "research use only; not a diagnosis"
NETWORKS = "leukocls.models."  # what the `_target_` of a network begins with
NUMBER = (int, float)
MAYBE = type(None)
_ENTRIES = {
    "format": int, "leukocls": str, "use": str, "classes": dict, "members": list, "metrics": list,
    "marks": list, "files": dict, "threshold": dict, "threshold.logit": NUMBER,
    "threshold.prob": NUMBER, "threshold.calibrated": NUMBER, "calibration": (dict, MAYBE),
    "conformal": dict, "conformal.fitted_on": (str, MAYBE), "conformal.reason": (str, MAYBE),
    "conformal.persons": (dict, MAYBE), "conformal.levels": list, "distance": (dict, MAYBE),
}  # fmt: skip
_OF_DISTANCE = {"file": str, "scale": NUMBER}
_OF_CALIBRATION = dict.fromkeys(("intercept", "slope", "log_pos_weight"), NUMBER)
_OF_LEVEL = {"alpha": NUMBER, "all_above": (*NUMBER, MAYBE), "hem_below": (*NUMBER, MAYBE)}
_OF_MEMBER = {
    "run": str, "network": dict, "weights": str, "prefix": str, "crop": (int, str), "size": int,
    "side": (int, MAYBE), "views": (int, str), "view_weights": list, "scale": NUMBER,
    "shift": NUMBER,
}  # fmt: skip
# The largest number of each, as in training but for the views, which have no limit there.
_MOST = {"crop": LARGEST, "size": STORED, "side": LARGEST, "views": 10_000}
_WORDS = {"crop": "box", "views": "corners"}  # what may stand in place of a number


@dataclass(frozen=True)
class Member:
    """One network of a bundle.

    Attributes:
        network: the configuration group `model` of its run.
        weights: the safetensors file.
        prefix: what the names in it lack of the network's names.
        crop, size: as `leukocls.data.store.open_store` takes them.
        side: width and height in px of the images that it was trained on; None for any.
        views: as `leukocls.data.views.image_views` takes them.
        scale, shift: a run's logit is `scale` · output + `shift`. They undo the calibration that
            the last layer of a network in timm's format contains.
    """

    network: dict[str, Any]
    weights: Path
    prefix: str
    crop: int | str
    size: int
    side: int | None
    views: int | str
    scale: float
    shift: float


@dataclass(frozen=True)
class Described:
    """The content of leukocls.json, which a bundle and an ONNX file made of one hold.

    Attributes:
        place: the folder or file.
        document: the content of leukocls.json.
    """

    place: Path
    document: dict[str, Any]

    @property
    def side(self) -> int | None:
        """Width and height in px of the images that the networks know; None for any."""
        sides = {entries["side"] for entries in self.document["members"]}
        return sides.pop() if len(sides) == 1 else None

    @property
    def threshold(self) -> float:
        """The logit above which a cell is called ALL."""
        return float(self.document["threshold"]["logit"])

    @property
    def heading(self) -> str:
        """A line above pictures of predictions: marks, which cells are called ALL, the use."""
        above = self.document["threshold"]["calibrated"]
        marks, use = " ".join(self.document["marks"]), self.document["use"].upper()
        return " · ".join(filter(None, [marks, f"called ALL above p(ALL) {above:.3g}", use]))

    @property
    def calibration(self) -> tuple[float, float]:
        """Intercept and slope of the logit of the calibrated probability; 0 and 1 without one."""
        found = self.document["calibration"]
        return scaling(found) if found else (0.0, 1.0)

    def level(self, alpha: float | None) -> dict[str, Any] | None:
        """The limits of the logit for abstention at α; None without any.

        Args:
            alpha: None for the usual one, if the persons that it was fitted on suffice.

        Raises:
            LeukoclsError: an α that the bundle has no limits for.
        """
        table = self.document["conformal"]
        wanted = USUAL if alpha is None else alpha
        for level in usable_levels(table):
            if math.isclose(level["alpha"], wanted):
                return level
        if alpha is None:
            return None
        raise LeukoclsError(
            f"--alpha {alpha:g}: {self.place} has limits for {self.alphas}"
            f" ({table['reason'] or table['persons']}); smaller ones need more persons."
        )

    @property
    def alphas(self) -> str:
        """The α that there are limits of both classes for, in words."""
        levels = usable_levels(self.document["conformal"])
        return ", ".join(f"{one['alpha']:g}" for one in levels) or "none"


@dataclass(frozen=True)
class Bundle(Described):
    """A bundle whose files were checked.

    Attributes:
        members: its networks; the bundle's logit is the mean of theirs.
    """

    members: list[Member]


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle after checking each of its files.

    Raises:
        LeukoclsError: no bundle, one of a newer format, or a network that no version in use has.
        DataFault: an entry or a file is missing, damaged or was changed.
    """
    document = _document(folder / DOCUMENT)
    for name, digest in document["files"].items():
        path = _inside(folder, name)
        if not path.is_file():
            raise DataFault(f"{path}: missing from the bundle; copy the whole folder again.")
        if sha256_file(path) != digest:
            raise DataFault(
                f"{path}: damaged or changed (its sha256 is not the one in {DOCUMENT}); copy the"
                " whole folder again."
            )
    members = [_member(folder, entries, document["files"]) for entries in document["members"]]
    return Bundle(folder, document, members)


def _document(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise LeukoclsError(
            f"{path.parent}: no bundle (it has no {DOCUMENT}); make one with `python -m"
            " leukocls.bundle RUN --out DIR`."
        ) from None
    except OSError as error:
        raise LeukoclsError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise DataFault(f"{path}: damaged ({error}); copy the whole folder again.") from error
    return checked_document(text, path)


def checked_document(text: str, path: Path) -> dict[str, Any]:
    """The entries of a leukocls.json after checking them.

    Args:
        path: the file that holds it, for messages.

    Raises:
        LeukoclsError: of a newer format.
        DataFault: an entry is missing, damaged or was changed.
    """
    try:
        document = json.loads(text, parse_constant=_no_number)
    except ValueError as error:
        raise DataFault(f"{path}: damaged ({error}); copy the whole folder again.") from error
    if not isinstance(document, dict):
        raise DataFault(f"{path}: damaged (no JSON object); copy the whole folder again.")
    number = document.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise LeukoclsError(
            f"{path}: a bundle of format {number}, and this leukocls reads {FORMAT}; install a"
            f" newer one (it was written by {document.get('leukocls')})."
        )
    _check(document, _ENTRIES, path)
    if document["calibration"]:
        _check(document["calibration"], _OF_CALIBRATION, path, "calibration.")
    if document["distance"]:
        _check(document["distance"], _OF_DISTANCE, path, "distance.")
    if unknown := [mark for mark in document["marks"] if mark not in set(Mark)]:
        raise LeukoclsError(f"{path}: an unknown mark, {unknown[0]}; install a newer leukocls.")
    for level in document["conformal"]["levels"]:
        _check(level, _OF_LEVEL, path, "conformal.levels.")
    if not document["members"]:
        raise DataFault(f"{path}: names no network; copy the whole folder again.")
    for member in document["members"]:
        _check(member, _OF_MEMBER, path, "members.")
        for name, most in _MOST.items():
            value = member[name]
            allowed = (
                value == _WORDS.get(name)
                if isinstance(value, str)
                else (value is None or 1 <= value <= most)
            )
            if not allowed:
                raise DataFault(
                    f"{path}: the entry members.{name} is {value}, and not from 1 to {most:,};"
                    " take the bundle from its author again."
                )
        if not member["view_weights"]:
            raise DataFault(f"{path}: the entry members.view_weights is empty; copy it again.")
    if document.get(DIGEST) != record_digest(document):
        raise DataFault(
            f"{path}: edited since leukocls wrote it (its entries do not have the digest {DIGEST});"
            " copy the whole folder again."
        )
    return document


def _member(folder: Path, entries: dict[str, Any], files: Mapping[str, str]) -> Member:
    path = folder / DOCUMENT
    target = str(entries["network"].get("_target_"))
    if not target.startswith(NETWORKS):
        raise LeukoclsError(
            f"{path}: the network _target_={target} is none of leukocls's, and only those are"
            " built; take the bundle from its author again."
        )
    if entries["weights"] not in files:
        raise DataFault(f"{path}: the weights {entries['weights']} have no sha256 there.")
    return Member(
        network=entries["network"],
        weights=_inside(folder, entries["weights"]),
        prefix=entries["prefix"],
        crop=entries["crop"],
        size=entries["size"],
        side=entries["side"],
        views=entries["views"],
        scale=float(entries["scale"]),
        shift=float(entries["shift"]),
    )


def _no_number(text: str) -> None:
    """Refuse NaN and infinity, with which every comparison would be false."""
    raise ValueError(f"{text} is no number")


def _check(entries: Any, wanted: Mapping[str, Any], path: Path, prefix: str = "") -> None:
    """Refuse JSON in which an entry of a dotted name in `wanted` is missing or of another type."""
    for name, kind in wanted.items():
        found: Any = entries
        for part in name.split("."):
            if not isinstance(found, dict) or part not in found:
                raise DataFault(
                    f"{path}: the entry {prefix}{name} is missing; copy the whole folder again."
                )
            found = found[part]
        if not isinstance(found, kind):
            raise DataFault(
                f"{path}: the entry {prefix}{name} holds another kind of value; copy the whole"
                " folder again."
            )


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataFault(f"{folder / DOCUMENT}: names a file outside the bundle, {name}.")
    return path
