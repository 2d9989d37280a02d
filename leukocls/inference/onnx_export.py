"""Write the networks of a bundle as one ONNX file, and check that it predicts the same."""

import copy
import importlib.util
import io
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from leukocls.common.errors import LeukoclsError
from leukocls.common.files import atomic_write
from leukocls.data.views import image_views, view_count, view_matrices, view_weights
from leukocls.data.warp import to_images
from leukocls.inference.bundle import USE, Member
from leukocls.inference.distance import first_maps, pooled
from leukocls.inference.images import (
    TOGETHER,
    Reading,
    as_cell,
    find_images,
    memory,
    read_cell,
    seen,
)
from leukocls.inference.onnx_predictor import (
    ABOUT,
    DISTANCE,
    IMAGES,
    LOGIT,
    OWN,
    PLAIN,
    SPREAD,
    session_of,
    signed,
)
from leukocls.inference.torch_predictor import TorchPredictor
from leukocls.models.logits import to_logit
from leukocls.synthetic.latents import draw_cells
from leukocls.synthetic.render import render
from leukocls.synthetic.spec import SyntheticSpec

OPSET = 20  # the first whose GridSample takes the modes of PyTorch's
TOLERANCE = 1e-4  # of the logit
# Times PyTorch's own rounding, where that is coarse: 1.5e-3 was seen on genuine cells.
ROUNDINGS = 3
DRAWN = 16  # synthetic cells, where no images are named
AT_ONCE = 4  # images that are compared at a time, with all their views
THRESHOLD = "threshold"


class Parity(NamedTuple):
    """The largest difference between the logits of ONNX Runtime and of PyTorch.

    Attributes:
        images: what was compared, in words.
        number: of images.
        difference: the largest, of the logit.
        rounding: the largest between PyTorch's own logits in single and in double precision.
        error: the largest between ONNX Runtime's and PyTorch's in double precision.
        allowed: the largest error with which the file is written.
    """

    images: str
    number: int
    difference: float
    rounding: float
    error: float
    allowed: float


class _Whole(nn.Module):
    """From the pixels that the networks see to everything that `predict` says about a cell."""

    def __init__(self, predictor: TorchPredictor) -> None:
        super().__init__()
        self.members = predictor.members
        self.networks = nn.ModuleList(predictor.networks)
        self.calibration = predictor.bundle.calibration
        self.references = predictor.references
        for number, member in enumerate(self.members):
            # ONNX has no operator that inverts a matrix.
            self.register_buffer(f"matrices_{number}", view_matrices(member.views, member.size))
            weights = torch.tensor(view_weights(member.views), dtype=torch.float64)
            self.register_buffer(f"weights_{number}", weights)

    def forward(self, images: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        means, every = [], []
        floats = to_images(images)
        for number, (member, network) in enumerate(zip(self.members, self.networks, strict=True)):
            matrices = getattr(self, f"matrices_{number}")
            # One pass for all views: a graph with one network for each would be several times as
            # large, and as long in the making.
            seen_by = torch.cat(list(image_views(floats, member.views, matrices)))
            with first_maps(network) as kept:
                output: Any = network(seen_by)
            if not number:
                distance = self._distance(network, kept[0][: images.shape[0]])
            logits = to_logit(output[0] if isinstance(output, tuple) else output)
            logits = logits.reshape(view_count(member.views), -1)
            views = member.scale * logits.double() + member.shift
            means.append(getattr(self, f"weights_{number}") @ views)
            every.append(views)
        logit = torch.stack(means).mean(0)
        spread = torch.cat(every)
        # Not Tensor.std, of which the exporter makes more operators.
        spread = (spread - spread.mean(0)).square().mean(0).sqrt()
        intercept, slope = self.calibration
        probability = (intercept + slope * logit).sigmoid()
        return logit, probability, spread, distance, (logit > threshold).long()

    def _distance(self, network: nn.Module, maps: Tensor) -> Tensor:
        """Distance to the training cells, float64 [n]; NaN without references."""
        if self.references is None:
            return torch.full_like(maps[:, 0].flatten(1)[:, 0], torch.nan).double()
        return self.references.distance(pooled(network, maps))


def require_onnx() -> None:
    """Refuse to start where a package for ONNX is missing.

    Raises:
        LeukoclsError: naming them.
    """
    names = ("onnx", "onnxscript", "onnxruntime")
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise LeukoclsError(f"{', '.join(missing)}: not installed. pip install 'leukocls[export]'")


def write_onnx(predictor: TorchPredictor, out: Path, places: Sequence[str] = ()) -> Parity:
    """Write the ONNX file of a bundle, after ONNX Runtime computed the same logits as PyTorch.

    Input `images`: uint8 [n, S, S, 3], red first, cropped and resized as `seen` does; input
    `threshold`: a logit, float64, which may be left out. Outputs of n each: `logit`, `view_sd` and
    `distance`, float64, as `Scores`; `prob`, the calibrated probability of ALL; `label`, 1 for ALL.

    Args:
        predictor: on the CPU.
        out: the file, which is replaced.
        places: images to compare on, as `find_images` takes them; none draws cells.

    Raises:
        LeukoclsError: networks that see different crops or sizes; a network that ONNX cannot hold;
            logits further from those in double precision than TOLERANCE and than ROUNDINGS times
            PyTorch's; too many images; onnx or onnxruntime is not installed.
        DataFault: an image that cannot be read.
    """
    described, members = predictor.bundle, predictor.members
    if len({(member.crop, member.size) for member in members}) > 1:
        raise LeukoclsError(
            f"{described.place}: its networks see different crops or sizes, and an ONNX file has"
            " one input; export a bundle of one of them."
        )
    cells, kind = _cells(predictor, places)
    stored = np.stack([seen(cell, members[0].crop, members[0].size) for cell in cells])
    model = _exported(predictor, stored)
    logits = _logits(predictor, model.SerializeToString(), cells, stored)
    difference, rounding, error = _differences(*logits)
    allowed = max(TOLERANCE, ROUNDINGS * rounding)
    parity = Parity(kind, len(cells), difference, rounding, error, allowed)
    if not parity.error <= allowed:
        raise LeukoclsError(
            f"{described.place}: as ONNX its logits differ by up to {parity.error:.2g} on"
            f" {len(cells)} {kind}, and rounding explains no more than {allowed:.2g}; nothing was"
            " written."
        )
    for key, value in _about(described.document, members[0], parity).items():
        model.metadata_props.add(key=key, value=value)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, signed(model.SerializeToString()))
    return parity


def _about(document: dict[str, Any], member: Member, parity: Parity) -> dict[str, str]:
    """The metadata of the file; the place of its own digest is kept free."""
    crop, size = member.crop, member.size
    part = "the square around the cell" if crop == "box" else f"the central {crop} px"
    return {
        "use": USE,
        ABOUT: json.dumps(document),
        "input": f"images: uint8 [n, {size}, {size}, 3], red first: {part}, resized to {size} px;"
        " threshold: a logit",
        "parity": json.dumps(parity._asdict()),
        OWN: PLAIN.decode(),
    }


def _cells(predictor: TorchPredictor, places: Sequence[str]) -> tuple[list[np.ndarray], str]:
    """Images to compare on, of the side that the networks know, and what they are."""
    if places:
        reading, found = Reading(predictor.side), find_images(places)
        if sum(memory(one.path, reading) for one in found) > TOGETHER:
            raise LeukoclsError(
                f"--compare-on: {len(found)} images, which would be in memory at once; name fewer"
                f" of them, at most {TOGETHER}."
            )
        return [read_cell(one.path, reading).pixels for one in found], "images"
    drawn = draw_cells(SyntheticSpec(prelim_subjects_all=1, prelim_subjects_hem=1, final_cells=4))
    reading = Reading(predictor.side, resize=True)
    names = (Path(f"cell_{number}.bmp") for number in range(DRAWN))
    cells = [as_cell(name, render(cell), reading) for name, cell in zip(names, drawn, strict=False)]
    return [cell.pixels for cell in cells], "SYNTHETIC cells"


def _exported(predictor: TorchPredictor, stored: np.ndarray) -> Any:
    """The ONNX model, whose input `threshold` has the bundle's as its default."""
    require_onnx()
    from onnx import numpy_helper

    threshold = np.array(predictor.bundle.threshold)
    example = torch.from_numpy(stored[:2]), torch.from_numpy(threshold)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.inference_mode():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                _Whole(predictor).eval(), example, dynamo=True, verbose=False, opset_version=OPSET,
                input_names=[IMAGES, THRESHOLD],
                output_names=[LOGIT, "prob", SPREAD, DISTANCE, "label"],
                dynamic_shapes=({0: torch.export.Dim("n")}, {}),
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            raise LeukoclsError(
                f"{predictor.bundle.place}: ONNX cannot hold its network"
                f" ({str(error).splitlines()[0]})."
            ) from error
    assert program is not None
    model = program.model_proto
    model.graph.initializer.append(numpy_helper.from_array(threshold, THRESHOLD))
    return model


def _logits(
    predictor: TorchPredictor, content: bytes, cells: list[np.ndarray], stored: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Logits of ONNX Runtime, of PyTorch, and of PyTorch in double precision on the same views."""
    session, exact = session_of(content), copy.copy(predictor)
    exact.networks = [copy.deepcopy(network).double() for network in predictor.networks]
    exact.references = None
    found = []
    for start in range(0, len(cells), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        (onnx,) = session.run([LOGIT], {IMAGES: stored[some]})
        found.append((onnx, predictor.scores(cells[some]).logit, exact.scores(cells[some]).logit))
    return tuple(np.concatenate(logits) for logits in zip(*found, strict=True))


def _differences(onnx: np.ndarray, single: np.ndarray, double: np.ndarray) -> Iterator[float]:
    """The numbers of a Parity from logits; NaN where one is."""
    for one, other in ((onnx, single), (single, double), (onnx, double)):
        yield float(np.abs(one - other).max())
