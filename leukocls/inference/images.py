"""Images to predict: finding them, and reading what a network sees of each."""

import glob
import os
import stat
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.common.tables import listing
from leukocls.data.images import FORMATS, around_cell, central, read_with_form, resized

SUFFIXES = set().union(*FORMATS.values())
WIDER = 600  # px: images of this side, at C-NMC's magnification, are cut to what C-NMC shows
BACKGROUND = 0.05  # of an image's outermost pixels: with more that are not black it shows more
TOGETHER = 200  # of images that are in memory at once, as `memory` counts; the largest has 186
T = TypeVar("T")
S = TypeVar("S")


class Found(NamedTuple):
    """An image file to predict, and the name of its cell."""

    cell: str
    path: Path


class Cell(NamedTuple):
    """One image as it was read.

    Attributes:
        pixels: uint8 [H, W, 3], of the side that the networks were trained on.
        background: whether it shows more than a cell on black.
        lossy: whether it is a JPEG.
        converted: whether it was grey, of 16 bits or with alpha.
        segmented: whether the cell was cut out of a background.
    """

    pixels: np.ndarray
    background: bool
    lossy: bool
    converted: bool = False
    segmented: bool = False


class Reading(NamedTuple):
    """Options for reading images.

    Attributes:
        side: width and height that the networks were trained on; None for any size, and for any
            pixels that `leukocls.data.images.read_with_form` converts.
        resize: whether to scale an image of another size to it, on black if it is not square.
        segment: whether to cut the cell out of an image that shows more than a cell on black.
    """

    side: int | None
    resize: bool = False
    segment: bool = False


def find_images(places: Sequence[str | os.PathLike[str]]) -> list[Found]:
    """The images at files, folders (with all below them) and glob patterns, in order, once each.

    A cell is named by its file; where two files have one name, all are named by their path below
    the folder, or as given.

    Raises:
        LeukoclsError: a place where there is no image, or a folder that cannot be read.
    """
    found: dict[Path, str] = {}
    for place in [os.fspath(place) for place in places]:
        path = Path(place)
        if path.is_dir() and path.suffix.lower() not in SUFFIXES:
            inside = _below(path)
            named = [(one, str(one.relative_to(path))) for one in inside]
        elif os.path.lexists(path):
            named = [(path, place)]
        else:
            named = [(Path(one), one) for one in sorted(glob.glob(place, recursive=True))]
        if not named:
            raise LeukoclsError(
                f"{place}: no image there; name files, folders or patterns of"
                f" {', '.join(sorted(SUFFIXES))}."
            )
        for one, name in named:
            found.setdefault(one, name)
    names = [path.name for path in found]
    short = len(set(names)) == len(names)
    cells = [Found(text_of(path.name if short else name), path) for path, name in found.items()]
    if len({cell.cell for cell in cells}) < len(cells):
        twice = [cell.cell for cell in cells]
        raise LeukoclsError(
            f"{listing(sorted({name for name in twice if twice.count(name) > 1}))}: the same name"
            " below two folders; name the folder that holds both."
        )
    return cells


def text_of(name: str) -> str:
    """A file's name or path as text, in which bytes that are no UTF-8 are spelled out (\\xe9)."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _below(folder: Path) -> list[Path]:
    """Everything named like an image below a folder, sorted; links to folders are not followed."""

    def unreadable(error: OSError) -> None:
        raise LeukoclsError(
            f"{text_of(error.filename)}: cannot be read ({error.strerror}); let it be read, or name"
            " the folders beside it."
        ) from error

    found = []
    for here, folders, files in os.walk(folder, onerror=unreadable):
        found += [Path(here) / name for name in (*files, *folders)]
    # Hidden ones are what systems leave behind, such as the `._` files of macOS.
    shown = (path for path in found if not path.name.startswith("."))
    return sorted(path for path in shown if path.suffix.lower() in SUFFIXES)


def read_cell(path: Path, reading: Reading) -> Cell:
    """Read one image.

    Raises:
        DataFault: no such file, damaged, all black, not as `reading` has it, or without a cell to
            cut out.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _fault(path, "is no file", "leave it out")
    except OSError as error:
        raise _fault(
            path, f"cannot be read ({error.strerror})", "restore or leave it out"
        ) from error
    with _no_warning():
        if reading.side is not None:
            # Before it is decoded; what cannot be opened is told below.
            with suppress(OSError, Image.DecompressionBombError), Image.open(path) as image:
                _check_side(path, *image.size, reading)
        pixels, form = read_with_form(path)
    if form and reading.side is not None:
        raise _fault(path, f"is {form}", "the networks see colour: save it as 8-bit RGB")
    return as_cell(path, pixels, reading)._replace(converted=bool(form))


@contextmanager
def _no_warning() -> Iterator[None]:
    """Silence Pillow about large images, whose size is checked before anything is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def as_cell(path: Path, pixels: np.ndarray, reading: Reading) -> Cell:
    """An image that was read, checked and of the side that the networks know: see `read_cell`."""
    if reading.side is not None:
        _check_side(path, pixels.shape[1], pixels.shape[0], reading)
        pixels = _of_side(pixels, reading.side)
    if not pixels.any():
        raise _fault(path, "is all black", "there is no cell in it; leave it out")
    ring = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = float(ring.any(1).mean()) > BACKGROUND
    lossy = path.suffix.lower() in FORMATS["JPEG"]
    if not (background and reading.segment):
        return Cell(pixels, background, lossy)
    # Of scipy and scikit-image, which only this option needs.
    from leukocls.inference.segment import segmented

    try:
        return Cell(segmented(pixels), False, lossy, segmented=True)
    except ValueError as error:
        raise _fault(path, f"cannot be segmented: {error}", "cut the cell out by hand") from error


def _check_side(path: Path, width: int, height: int, reading: Reading) -> None:
    """Refuse an image of a size that is neither known nor to be changed."""
    side = reading.side
    wider = side is not None and side < WIDER and (width, height) == (WIDER, WIDER)
    if not (wider or reading.resize or (width, height) == (side, side)):
        raise _fault(
            path,
            f"is {width}×{height} pixels, and the networks know {side}×{side}",
            "cut it to that size at the same magnification, or take --resize",
        )


def _of_side(pixels: np.ndarray, side: int) -> np.ndarray:
    """An image of side × side pixels: the centre of one of WIDER, another one resized."""
    height, width = pixels.shape[:2]
    if (height, width) == (side, side):
        return pixels
    if (height, width) == (WIDER, WIDER) and side < WIDER:
        return central(pixels, side)
    return resized(central(pixels, max(height, width)), side)


def seen(pixels: np.ndarray, crop: int | str, size: int) -> np.ndarray:
    """The pixels of an image that a network sees: uint8 [size, size, 3].

    Args:
        crop, size: as `leukocls.data.store.open_store` takes them.
    """
    return resized(around_cell(pixels) if crop == "box" else central(pixels, int(crop)), size)


def memory(path: Path, reading: Reading) -> float:
    """The memory that an image takes when it is read, in images of WIDER × WIDER pixels."""
    if (reading.side is None or reading.resize) and path.is_file():
        with suppress(Exception), _no_warning(), Image.open(path) as image:
            return image.width * image.height / WIDER**2
    return 1.0


def ahead(
    work: Callable[[S], T],
    items: Iterable[S],
    number: float,
    weight: Callable[[S], float] = lambda _: 1.0,
) -> Iterator[T]:
    """Results of `work` on each item, in order, computed on threads.

    Those ahead weigh `number` at most in sum, or are one.
    """
    waiting: deque[tuple[float, Future[T]]] = deque()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        try:
            for item in items:
                weighs = weight(item)
                while waiting and weighs + sum(one for one, _ in waiting) > number:
                    yield waiting.popleft()[1].result()
                waiting.append((weighs, pool.submit(work, item)))
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            for _, one in waiting:
                one.cancel()


def _fault(path: Path, cause: str, remedy: str) -> DataFault:
    return DataFault(f"{path}: {cause}; {remedy}")
