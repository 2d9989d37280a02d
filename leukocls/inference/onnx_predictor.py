"""Predict images with an ONNX file that `leukocls.export` wrote: by ONNX Runtime, without PyTorch.

The metadata of the file hold leukocls.json and the sha256 of the file itself.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.inference.bundle import Described, checked_document
from leukocls.inference.images import seen
from leukocls.inference.predictor import BATCH, Predictor, Scores

IMAGES, LOGIT, SPREAD, DISTANCE = "images", "logit", "view_sd", "distance"
ABOUT, OWN = "leukocls", "leukocls_sha256"  # keys of the metadata
# The bytes of the digest are zeros while it is computed.
PLAIN = b"leukocls-sha256:" + b"0" * 64
_SIGNED = re.compile(rb"leukocls-sha256:([0-9a-f]{64})")


class OnnxPredictor(Predictor):
    """The networks of a bundle in one ONNX file, with their views."""

    def __init__(self, path: Path, device: str | None = None, alpha: float | None = None) -> None:
        content = _checked(path)
        try:
            import onnxruntime  # noqa: F401
        except ImportError:
            raise LeukoclsError(
                f"{path}: onnxruntime is not installed; pip install 'leukocls[predict]'."
            ) from None
        providers = _providers(device)
        try:
            self._session = session_of(content, providers)
        except Exception as error:  # onnxruntime has classes of errors that it does not export
            cause = str(error).splitlines()[0]
            raise LeukoclsError(f"{path}: onnxruntime cannot open it: {cause}") from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        described = Described(path, checked_document(metadata[ABOUT], path))
        super().__init__(described, alpha)
        first: dict[str, Any] = described.document["members"][0]
        self._crop, self._size = first["crop"], first["size"]
        # All views of a batch are in memory at once.
        views = max(len(one["view_weights"]) for one in described.document["members"])
        self._batch = max(BATCH // views, 1)

    def scores(self, images: Sequence[np.ndarray]) -> Scores:
        parts = []
        for start in range(0, len(images), self._batch):
            some = images[start : start + self._batch]
            stored = np.stack([seen(image, self._crop, self._size) for image in some])
            parts.append(self._session.run([LOGIT, SPREAD, DISTANCE], {IMAGES: stored}))
        return Scores(*(np.concatenate(one) for one in zip(*parts, strict=True)))


def session_of(content: bytes, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """A session of ONNX Runtime for the content of an ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of inputs that have a default
    return onnxruntime.InferenceSession(content, options, list(providers))


def signed(content: bytes) -> bytes:
    """The content of an ONNX file whose metadata hold PLAIN, with its sha256 in that place."""
    assert content.count(PLAIN) == 1
    return content.replace(PLAIN, PLAIN[:-64] + hashlib.sha256(content).hexdigest().encode())


def _checked(path: Path) -> bytes:
    """The content of a file that is as `leukocls.export` wrote it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LeukoclsError(f"{path}: cannot be read ({error.strerror}).") from error
    found = _SIGNED.findall(content)
    if not found:
        raise LeukoclsError(
            f"{path}: no ONNX file of leukocls's; make one with `python -m leukocls.export BUNDLE"
            " --out FILE.onnx`."
        )
    plain = content.replace(found[0], PLAIN[-64:])
    if len(found) > 1 or hashlib.sha256(plain).hexdigest() != found[0].decode():
        raise DataFault(
            f"{path}: damaged or changed (its sha256 is not the one that it holds); copy it again."
        )
    return content


def _providers(device: str | None) -> list[str]:
    """ONNX Runtime's name for the device; None takes a GPU that it can use."""
    import onnxruntime

    wanted = "CUDAExecutionProvider"
    usable = wanted in onnxruntime.get_available_providers()
    if device not in (None, "cpu", "cuda") or (device == "cuda" and not usable):
        raise LeukoclsError(
            f"--device {device}: onnxruntime computes on cpu here"
            f"{' or cuda' if usable else ' (onnxruntime-gpu is not installed)'}."
        )
    return [wanted] * (usable and device != "cpu") + ["CPUExecutionProvider"]
