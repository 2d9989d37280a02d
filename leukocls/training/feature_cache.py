"""Cache of frozen features: those of every image and view, computed once and kept on disk.

The name of a file is a digest of everything that changes a bit of its features. A file is written
to a temporary name and renamed, so a file that exists is complete; beside it lies a CRC-32 of each
image's features.
"""

import json
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import kornia
import numpy as np
import timm
import torch
from tqdm import tqdm

from leukocls import __version__
from leukocls.common.files import atomic_stream, remove_unfinished
from leukocls.data.store import check_length, checksums_of
from leukocls.data.views import image_views, view_count
from leukocls.data.warp import to_images
from leukocls.models.frozen import FrozenFeatures


def cached_features(
    network: FrozenFeatures,
    store: Any,
    views: int | str,
    cache: Path,
    *,
    batch_size: int,
    device: torch.device,
) -> np.memmap:
    """Features of the whole store as a read-only memory map float32 [N, V, F], computed if needed.

    They are those of `network.features` for batches of `batch_size` images, in the store's order.
    The size of a batch, and an image's place in it, may change the last bits of a feature
    (convolutions on a CPU: about 1e-6 of the largest).

    Args:
        network: is moved to `device`.
        store: the result of `open_store`; the name of its file identifies its content.
        views: as `leukocls.data.views.image_views` takes them.
        cache: directory of the file.

    Raises:
        LeukoclsError: `views` is out of range.
    """
    shape = (len(store), view_count(views), network.num_features)
    path = cache / f"features-{_key(network, store, views, batch_size, device)}.npy"
    features = _read(path, shape)
    if features is None:
        _write(path, shape, _batches(network, store, views, batch_size, device))
        features = np.lib.format.open_memmap(path, mode="r")
    return features


def _key(
    network: FrozenFeatures,
    store: np.memmap,
    views: int | str,
    batch_size: int,
    device: torch.device,
) -> str:
    """sha256 of everything that may change a feature, if only in its last bit."""
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:  # kernels differ by its vector instructions
        processor = f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
    parts = {
        "store": [Path(str(store.filename)).name, *store.shape],
        "network": network.fingerprint(),
        "views": views,
        "batch_size": batch_size,
        "processor": processor,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "versions": [__version__, torch.__version__, timm.__version__, kornia.__version__],
    }
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(path: Path, shape: tuple[int, int, int]) -> np.memmap | None:
    """The features in a file; None if it is missing, truncated, of another shape or was changed."""
    try:
        features: np.memmap = np.lib.format.open_memmap(path, mode="r")
        written = np.load(checksums_of(path))
    except (OSError, ValueError, EOFError):  # ValueError: not an array file, or a truncated one
        return None
    if features.shape != shape or features.dtype != np.float32 or len(written) != len(features):
        return None
    present = np.fromiter(map(zlib.crc32, features), np.uint32, len(features))
    return features if np.array_equal(present, written) else None


def _batches(
    network: FrozenFeatures,
    store: np.memmap,
    views: int | str,
    batch_size: int,
    device: torch.device,
) -> Iterator[np.ndarray]:
    """Features of each batch, float32 [B, V, F], in the store's order."""
    network.to(device)
    starts = range(0, len(store), batch_size)
    # Only a long wait deserves a bar; `disable=None` keeps it out of files and pipes.
    bar = tqdm(starts, desc="features", unit="batch", disable=None, delay=1, leave=False)
    for start in bar:
        check_length(store)
        stored = torch.from_numpy(np.array(store[start : start + batch_size])).to(device)
        features = [network.features(view) for view in image_views(to_images(stored), views)]
        yield torch.stack(features, 1).cpu().numpy()


def _write(path: Path, shape: tuple[int, int, int], batches: Iterator[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path.parent)
    with atomic_stream(path) as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        checksums = []
        for batch in batches:
            stream.write(batch.tobytes())
            checksums += [zlib.crc32(image) for image in batch]
        # Before the features themselves appear, so that they have their checksums.
        with atomic_stream(checksums_of(path)) as sums:
            np.save(sums, np.array(checksums, np.uint32))
