"""Full states of a run as whole files with a checksum behind, for Lightning."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from leukocls.common.errors import DataFault
from leukocls.common.files import atomic_stream

MARK = b"\nleukocls sha256 "
DIGEST = 64  # characters


class ChecksummedIO(TorchCheckpointIO):
    """Lightning's checkpoints as whole files, or none; a damaged one is refused.

    A file is what `torch.save` writes, and the sha256 of that. Lightning's own class leaves a
    read-only folder without a word, and reads most flipped bytes as weights.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: it cannot be written; an older file of this name is unchanged.
        """
        # In memory first: torch would hide the error of a full disk behind one of its own.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with content.getbuffer() as body, atomic_stream(path) as stream:
            stream.write(body)
            stream.write(MARK + hashlib.sha256(body).hexdigest().encode())

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint after checking it.

        Raises:
            DataFault: it is damaged, or no file.
        """
        content = _checked(Path(path))
        try:
            # Whatever is asked for: full states hold no code.
            state: dict[str, Any] = torch.load(
                io.BytesIO(content), map_location=map_location, weights_only=True
            )
        except Exception as error:  # torch raises many kinds
            cause = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise DataFault(f"{path}: does not read ({cause})") from error
        return state


def _checked(path: Path) -> bytes:
    """The content of a checkpoint without its checksum, after checking it.

    Those of versions before 0.2 have none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataFault(f"{path}: cannot be read ({os.strerror(error.errno or 0)})") from error
    body, mark, digest = content.rpartition(MARK)
    if not mark or len(digest) != DIGEST:
        return content
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise DataFault(f"{path}: damaged (its sha256 is not the one that was written with it)")
    return body
