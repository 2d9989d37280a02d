import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leukocls.common.errors import DataFault
from leukocls.data import bmp
from leukocls.data.bmp import read_crop, read_header
from leukocls.synthetic.tree import encode_bmp

SIZE_FIELD, OFFSET_FIELD, WIDTH_FIELD, HEIGHT_FIELD = 2, 10, 18, 22
BITS_FIELD, COMPRESSION_FIELD = 28, 30


def noise(side, seed=0):
    """Every pixel and channel its own: a shift, a flip or BGR cannot go unseen."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def pillow_crop(path, crop):
    """The oracle; an odd margin is rounded as torchvision's CenterCrop rounds it."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    first = round((pixels.shape[0] - crop) / 2)
    return pixels[first : first + crop, first : first + crop]


def patched(data, fmt, offset, *values):
    data = bytearray(data)
    struct.pack_into(fmt, data, offset, *values)
    return bytes(data)


@pytest.fixture(scope="module")
def good():
    return encode_bmp(noise(450))


# --- what whole files give


@pytest.mark.parametrize("crop", [450, 300, 299])
def test_genuine_images_equal_pillow(sample_root, crop):
    paths = sorted(sample_root.rglob("*.bmp"))
    assert len(paths) == 110
    for path in paths:
        assert np.array_equal(read_crop(path, 450, crop), pillow_crop(path, crop)), path.name


@pytest.mark.parametrize("side", [450, 600])
@pytest.mark.parametrize("v5", [False, True])
@pytest.mark.parametrize("crop", [450, 449, 300, 299, 297, 2, 1])
def test_written_images_equal_pillow(tmp_path, side, v5, crop):
    path = tmp_path / "1.bmp"
    path.write_bytes(encode_bmp(noise(side), v5=v5))
    assert read_header(path, side).offset == (138 if v5 else 54)
    image = read_crop(path, side, crop)
    assert np.array_equal(image, pillow_crop(path, crop))
    assert (image.dtype, image.shape) == (np.uint8, (crop, crop, 3))
    # torch.from_numpy shares such an array and warns about any other.
    assert image.flags.c_contiguous
    assert image.flags.writeable


# An odd margin: 75.5 and 76.5 both go to 76, the even neighbour.
@pytest.mark.parametrize(("crop", "first"), [(299, 76), (297, 76), (300, 75), (450, 0)])
def test_an_odd_margin_rounds_half_to_even(tmp_path, good, crop, first):
    path = tmp_path / "1.bmp"
    path.write_bytes(good)
    wanted = noise(450)[first : first + crop, first : first + crop]
    assert np.array_equal(read_crop(path, 450, crop), wanted)


@pytest.mark.parametrize("crop", [450, 300, 299])
def test_rows_from_the_top_down(tmp_path, crop):
    path = tmp_path / "1.bmp"
    upside_down = encode_bmp(noise(450)[::-1])
    path.write_bytes(patched(upside_down, "<i", HEIGHT_FIELD, -450))
    assert read_header(path, 450).top_down
    assert np.array_equal(read_crop(path, 450, crop), noise(450)[_middle(crop)])
    assert np.array_equal(read_crop(path, 450, crop), pillow_crop(path, crop))


def _middle(crop):
    first = round((450 - crop) / 2)
    return slice(first, first + crop), slice(first, first + crop)


def test_only_the_rows_of_the_crop_are_read(tmp_path, good, monkeypatch):
    path = tmp_path / "1.bmp"
    path.write_bytes(good)
    lengths, preadv = [], os.preadv

    def counted(descriptor, buffers, offset):
        lengths.append(sum(len(memoryview(buffer).cast("B")) for buffer in buffers))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(bmp.os, "preadv", counted)
    read_crop(path, 450, 300)
    assert lengths == [300 * 1352]


# --- faults: D4


def write(path, kind, good):
    """A file at `path` that is no whole 450×450 RGB BMP."""
    data = {
        "one byte short": good[:-1],
        "one byte long": good + b"\0",
        "cut in its header": good[:20],
        "cut after its header": good[:54],
        "0 bytes": b"",
        "html": b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>",
        "size field wrong": patched(good, "<I", SIZE_FIELD, len(good) + 1),
        "pixels start elsewhere": patched(good, "<I", OFFSET_FIELD, 55),
        "10000 squared": patched(good, "<ii", WIDTH_FIELD, 10_000, 10_000),
        "negative width": patched(good, "<i", WIDTH_FIELD, -450),
        "same area": patched(good, "<ii", WIDTH_FIELD, 225, 900),
        "wider": patched(good, "<i", WIDTH_FIELD, 451),
        "lower": patched(good, "<i", HEIGHT_FIELD, 449),
        "16 bits": patched(good, "<H", BITS_FIELD, 16),
        "RLE": patched(good, "<I", COMPRESSION_FIELD, 1),
        "JPEG inside": patched(good, "<I", COMPRESSION_FIELD, 4),
        "600 pixels": encode_bmp(noise(600)),
    }
    modes = {"grey": "L", "palette": "P", "RGBA": "RGBA", "black and white": "1"}
    if kind in modes:
        Image.new(modes[kind], (450, 450)).save(path, format="BMP")
    elif kind in ("PNG", "JPEG", "TIFF"):
        Image.fromarray(noise(450)).save(path, format=kind)
    elif kind == "directory":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(path.with_name("gone.bmp"))
    elif kind != "missing":
        path.write_bytes(data[kind])


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("one byte short", r"is 608,453 bytes long, its header says 608,454 .* need 608,454;"),
        ("one byte long", r"is 608,455 bytes long, its header says 608,454 .* need 608,454;"),
        ("cut in its header", r"is not a BMP image"),
        ("cut after its header", r"is 54 bytes long, its header says 608,454"),
        ("size field wrong", r"is 608,454 bytes long, its header says 608,455"),
        ("pixels start elsewhere", r"is 608,454 bytes long, .* need 608,455;"),
        ("0 bytes", r"is empty \(0 bytes\)"),
        ("html", r"is not a BMP image \(starts with b'<!DOCTYP'\)"),
        ("PNG", r"is not a BMP image \(starts with b'\\x89PNG"),
        ("JPEG", r"is not a BMP image"),
        ("TIFF", r"is not a BMP image"),
        ("grey", r"is not an uncompressed 8-bit RGB BMP \(8 bits a pixel, compression 0\)"),
        ("palette", r"is not an uncompressed 8-bit RGB BMP \(8 bits a pixel"),
        ("black and white", r"is not an uncompressed 8-bit RGB BMP \(1 bits a pixel"),
        ("RGBA", r"is not an uncompressed 8-bit RGB BMP \(32 bits a pixel"),
        ("16 bits", r"is not an uncompressed 8-bit RGB BMP \(16 bits a pixel"),
        ("RLE", r"is not an uncompressed 8-bit RGB BMP \(24 bits a pixel, compression 1\)"),
        ("JPEG inside", r"is not an uncompressed 8-bit RGB BMP \(24 bits a pixel, compression 4\)"),
        ("10000 squared", r"is 10000×10000 pixels, not 450×450"),
        ("600 pixels", r"is 600×600 pixels, not 450×450"),
        ("same area", r"is 225×900 pixels, not 450×450"),
        ("wider", r"is 451×450 pixels, not 450×450"),
        ("lower", r"is 450×449 pixels, not 450×450"),
        ("negative width", r"is -450×450 pixels, not 450×450"),
        ("directory", r"cannot be read \(Is a directory\)"),
        ("missing", r"cannot be read \(No such file or directory\)"),
        ("dangling link", r"cannot be read \(No such file or directory\)"),
    ],
)
@pytest.mark.parametrize("read", [read_header, lambda path, side: read_crop(path, side, 300)])
def test_a_damaged_file_is_named_with_cause_and_remedy(tmp_path, good, kind, cause, read):
    path = tmp_path / "bad.bmp"
    write(path, kind, good)
    with pytest.raises(DataFault, match=cause) as caught:
        read(path, 450)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("; fetch the file again from the original archive")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_huge_image_is_refused_before_it_takes_memory(tmp_path, good):
    path = tmp_path / "huge.bmp"
    size = 54 + 30_000 * 10_000
    head = patched(good[:54], "<ii", WIDTH_FIELD, 10_000, 10_000)
    path.write_bytes(patched(head, "<I", SIZE_FIELD, size))
    # Sparse: whole as its header has it, but no room on the disk.
    os.truncate(path, size)
    tracemalloc.start()
    try:
        with pytest.raises(DataFault, match="10000×10000"):
            read_crop(path, 450, 300)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path, good, monkeypatch):
    path = tmp_path / "1.bmp"
    path.write_bytes(good)

    def checked_then_cut(path: Path, side: int) -> bmp.BmpHeader:
        header = read_header(path, side)
        os.truncate(path, 10_000)
        return header

    monkeypatch.setattr(bmp, "read_header", checked_then_cut)
    with pytest.raises(DataFault, match=r"1\.bmp: ended while it was read; fetch"):
        read_crop(path, 450, 300)
