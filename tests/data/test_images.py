"""Images of other data sets: what is read equals Pillow, and what is wrong is named."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile
from torchvision.transforms.functional import center_crop

from leukocls.common.errors import DataFault, Fault
from leukocls.data.images import LARGEST, central, read_image, read_with_form
from leukocls.synthetic.tree import encode_bmp


def noise(height, width, seed=0):
    """Every pixel and channel its own: a shift, a flip or BGR cannot go unseen."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(image, kind, mode="RGB", **options):
    stream = io.BytesIO()
    Image.fromarray(image).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, bits, colour, rows):
    """A PNG with this header, whatever its rows hold."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


def deep_png(image):
    """16 bits a channel, as some microscopes' software exports."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    return png(image.shape[1], image.shape[0], 16, 2, rows)


def deep_tiff(image, packed=False, photometric=2):
    """16 bits a channel, one strip, little endian (TIFF 6.0), as it is or deflated.

    RGB (photometric 2), or one channel in which black (1) or white (0) is 0.
    """
    height, width = image.shape[:2]
    channels = 3 if photometric == 2 else 1
    image = image[..., :channels]
    data = image.astype("<u2").tobytes()
    data = zlib.compress(data) if packed else data
    end = 8 + 2 + 12 * 9 + 4
    bits = (258, 3, 3, end) if channels == 3 else (258, 3, 1, 16)
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), bits, (259, 3, 1, 8 if packed else 1),
        (262, 3, 1, photometric), (273, 4, 1, end + 6), (277, 3, 1, channels), (278, 4, 1, height),
        (279, 4, 1, len(data)),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + directory + bytes(4) + struct.pack("<3H", 16, 16, 16) + data


def fault(path, side=None):
    """The one fault of a file that is not to be read."""
    with pytest.raises(DataFault) as caught:
        read_image(path, side)
    (found,) = caught.value.args
    assert isinstance(found, Fault)
    assert caught.value.exit_code == 1
    assert found.path == path
    assert found.cause
    assert found.remedy
    return found


# --- what is read


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("a.bmp", "BMP", {}),
        ("a.BMP", "BMP", {}),
        ("a.png", "PNG", {}),
        ("a.png", "PNG", {"compress_level": 0}),
        ("a.tif", "TIFF", {}),
        ("a.tiff", "TIFF", {"compression": "tiff_lzw"}),
        ("a.TIF", "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("a.jpg", "JPEG", {"quality": 90}),
        ("a.jpeg", "JPEG", {"progressive": True}),
    ],
)
@pytest.mark.parametrize(("height", "width"), [(37, 52), (52, 37), (1, 1), (450, 450)])
def test_every_format_and_size_equals_pillow(tmp_path, name, kind, options, height, width):
    image = noise(height, width)
    path = tmp_path / name
    path.write_bytes(saved(image, kind, **options))
    found = read_image(path)
    assert (found.dtype, found.shape) == (np.uint8, (height, width, 3))
    with Image.open(path) as oracle:
        assert np.array_equal(found, np.asarray(oracle))
    if kind != "JPEG":
        assert np.array_equal(found, image)


def test_genuine_images_are_read_alike_as_cnmc_and_as_any_image(sample_root):
    for path in sorted(sample_root.rglob("*.bmp"))[::20]:
        assert np.array_equal(read_image(path), read_image(path, 450))


def test_a_side_means_a_bmp_of_that_side(tmp_path):
    path = tmp_path / "1.bmp"
    path.write_bytes(encode_bmp(noise(450, 450)))
    assert np.array_equal(read_image(path, 450), noise(450, 450))
    assert "is 450×450 pixels, not 600×600" in fault(path, 600).cause
    path.write_bytes(saved(noise(450, 450), "PNG"))
    assert "is not a BMP image" in fault(path, 450).cause


# --- what is wrong


IMAGE = noise(24, 20)
PAGES = io.BytesIO()
Image.fromarray(IMAGE).save(
    PAGES, "TIFF", save_all=True, append_images=[Image.fromarray(IMAGE[::-1])]
)
FRAMES = io.BytesIO()
Image.fromarray(IMAGE).save(
    FRAMES, "PNG", save_all=True, append_images=[Image.fromarray(IMAGE[::-1])]
)
DEEP = np.random.default_rng(0).integers(0, 2**16, (24, 20, 3))
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
GIF = saved(IMAGE, "GIF", "P")
WRONG = {
    "black and white": ("a.png", saved(IMAGE, "PNG", "1"), "pixel.* 1$"),
    "palette PNG": ("a.png", saved(IMAGE, "PNG", "P"), "pixel.* P$"),
    "palette BMP": ("a.bmp", saved(IMAGE, "BMP", "P"), "pixel.* P$"),
    "CMYK JPEG": ("a.jpg", saved(IMAGE, "JPEG", "CMYK"), "pixel.* CMYK$"),
    "white is 0, 16-bit": ("a.tif", deep_tiff(DEEP, photometric=0), "white is 0"),
    "32-bit grey": ("a.tif", saved(DEEP[..., 0].astype(np.int32), "TIFF", "I"), "pixel.* I$"),
    "16-bit BMP": (
        "a.bmp",
        (whole := encode_bmp(IMAGE))[:28] + struct.pack("<H", 16) + whole[30:],
        "16 bits",
    ),
    "several pages": ("a.tif", PAGES.getvalue(), r"2 page\(s\)"),
    "animation": ("a.png", FRAMES.getvalue(), r"2 page\(s\)"),
    "PNG named .bmp": ("a.bmp", saved(IMAGE, "PNG"), "is PNG by its content"),
    "BMP named .png": ("a.png", saved(IMAGE, "BMP"), "is BMP by its content"),
    "JPEG named .png": ("a.png", saved(IMAGE, "JPEG"), "is JPEG by its content"),
    "GIF": ("a.gif", GIF, "is GIF by its content"),
    "GIF named .png": ("a.png", GIF, "is GIF by its content"),
    "no suffix": ("a", saved(IMAGE, "PNG"), "is PNG by its content"),
    "too wide": ("a.png", saved(noise(1, LARGEST + 1), "PNG"), "8193×1 pixels"),
    "too high": ("a.bmp", encode_bmp(noise(LARGEST + 1, 1)), "1×8193 pixels"),
    "header of 10000² (PNG)": ("a.png", png(10_000, 10_000, 8, 2, b""), "10000×10000 pixels"),
    "header of 30000² (PNG)": ("a.png", png(30_000, 30_000, 8, 2, b""), "does not decode|30000"),
    "header of 10000² (BMP)": (
        "a.bmp",
        whole[:18] + struct.pack("<ii", 10_000, 10_000) + whole[26:],
        "10000×10000 pixels",
    ),
    "header of 8000² (BMP)": (
        "a.bmp",
        whole[:18] + struct.pack("<ii", 8_000, 8_000) + whole[26:],
        "bytes long, its header says",
    ),
    "BMP one byte short": ("a.bmp", whole[:-1], "bytes long, its header says"),
    "BMP one byte long": ("a.bmp", whole + b"\0", "bytes long, its header says"),
    "PNG cut": ("a.png", saved(IMAGE, "PNG")[:-60], "does not decode"),
    "PNG with a wrong byte": (
        "a.png",
        saved(IMAGE, "PNG")[:100] + b"\x55\xaa" + saved(IMAGE, "PNG")[102:],
        "does not decode",
    ),
    "JPEG cut": ("a.jpg", saved(IMAGE, "JPEG")[:-60], "does not decode"),
    "TIFF cut": ("a.tif", saved(IMAGE, "TIFF")[:-1], "does not decode"),
    "TIFF (LZW) cut": (
        "a.tif",
        saved(IMAGE, "TIFF", compression="tiff_lzw")[:1000],
        "does not decode",
    ),
    "HTML page": ("a.jpg", HTML, "does not decode"),
    "HTML page named .bmp": ("a.bmp", HTML, "does not decode"),
    "0 bytes": ("a.png", b"", "does not decode"),
}
# Of these the header says enough.
UNDECODED = {name: case for name, case in WRONG.items() if not case[2].startswith("does not")}
CLEAR = np.dstack([IMAGE, np.full(IMAGE.shape[:2], 255, np.uint8)])
CLEAR[3, 4, 3] = 254
WRONG["transparent"] = ("a.png", saved(CLEAR, "PNG", "RGBA"), "transparent")
WRONG["transparent grey"] = ("a.png", saved(CLEAR, "PNG", "LA"), "transparent")
WRONG["14 of 16 bits, grey"] = ("a.png", saved(DEEP[..., 0].astype(np.uint16) >> 2, "PNG", "I;16"),
                                "no value reaches 16,384")  # fmt: skip
WRONG["12 of 16 bits"] = ("a.tif", deep_tiff(DEEP >> 4), "no value reaches 16,384")


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
@pytest.mark.filterwarnings("ignore:(Corrupt|Truncated)")
def test_what_is_wrong_with_an_image_is_named(tmp_path, name):
    file, content, cause = WRONG[name]
    path = tmp_path / file
    path.write_bytes(content)
    assert re.search(cause, fault(path).cause)


@pytest.mark.parametrize("name", UNDECODED)
@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
def test_format_mode_and_size_are_checked_before_decoding(tmp_path, monkeypatch, name):
    def load(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    file, content, _ = UNDECODED[name]
    (tmp_path / file).write_bytes(content)
    assert fault(tmp_path / file)


def test_remedies_say_what_to_do(tmp_path):
    says = {
        "CMYK JPEG": "save it as 8-bit RGB",
        "transparent": "save it as RGB",
        "12 of 16 bits": "scale it",
        "several pages": "one image per cell",
        "too wide": f"at most {LARGEST} pixels",
        "PNG named .bmp": "with the suffix of that format",
        "JPEG cut": "restore the file or leave it out",
        "BMP one byte short": "restore the file or leave it out",
    }
    for name, remedy in says.items():
        file, content, _ = WRONG[name]
        (tmp_path / file).write_bytes(content)
        assert remedy in fault(tmp_path / file).remedy


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.png", deep_png), ("a.tif", deep_tiff), ("a.tif", lambda image: deep_tiff(image, True))],
)
def test_of_16_bits_a_channel_the_upper_8_are_kept(tmp_path, name, write):
    path = tmp_path / name
    path.write_bytes(write(DEEP))
    pixels, form = read_with_form(path)
    assert form == "16-bit RGB"
    assert np.array_equal(pixels, DEEP // 256)


GREY = np.asarray(Image.fromarray(IMAGE).convert("L"))
GREY_3 = np.dstack([GREY] * 3)
DEEP_GREY = DEEP[..., 0].astype(np.uint16)
DEEP_3 = np.dstack([DEEP_GREY >> 8] * 3)
CONVERTED = {
    "grey PNG": ("a.png", saved(IMAGE, "PNG", "L"), "grey", GREY_3),
    "grey TIFF": ("a.tif", saved(IMAGE, "TIFF", "L"), "grey", GREY_3),
    "grey BMP": ("a.bmp", saved(IMAGE, "BMP", "L"), "grey", GREY_3),
    "grey with alpha": ("a.png", saved(IMAGE, "PNG", "LA"), "grey with alpha", GREY_3),
    "RGBA PNG": ("a.png", saved(IMAGE, "PNG", "RGBA"), "RGB with alpha", IMAGE),
    "RGBA TIFF": ("a.tif", saved(IMAGE, "TIFF", "RGBA"), "RGB with alpha", IMAGE),
    # The fourth byte of such a BMP is not alpha, but unused.
    "32-bit BMP": ("a.bmp", saved(IMAGE, "BMP", "RGBA"), "", IMAGE),
    "16-bit grey PNG": ("a.png", saved(DEEP_GREY, "PNG", "I;16"), "16-bit grey", DEEP_3),
    "16-bit grey TIFF": ("a.tif", saved(DEEP_GREY, "TIFF", "I;16"), "16-bit grey", DEEP_3),
    "the same, big endian": (
        "a.tif",
        saved(DEEP_GREY.astype(">u2"), "TIFF", "I;16B"),
        "16-bit grey",
        DEEP_3,
    ),
    "the same, by hand": ("a.tif", deep_tiff(DEEP, photometric=1), "16-bit grey", DEEP_3),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_what_is_converted_is_named(tmp_path, name):
    file, content, form, pixels = CONVERTED[name]
    path = tmp_path / file
    path.write_bytes(content)
    found, found_form = read_with_form(path)
    assert found_form == form
    assert (found.dtype, found.shape) == (np.uint8, pixels.shape)
    assert np.array_equal(found, pixels)
    assert np.array_equal(read_image(path), pixels)
    if file == "a.bmp":
        path.write_bytes(content[:-1])
        assert "bytes long, its header says" in fault(path).cause


def test_8_bit_rgb_is_not_converted(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(IMAGE, "PNG"))
    assert read_with_form(tmp_path / "a.png")[1] == ""


def test_what_the_system_refuses_is_no_damage(tmp_path, monkeypatch):
    """Root may read everything, so that the refusal is made up."""

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refused)
    with pytest.raises(DataFault, match=r"cannot be read \(Permission denied\)"):
        read_image(tmp_path / "cell.png")


def test_a_missing_file_and_a_folder_are_faults(tmp_path):
    assert "No such file" in fault(tmp_path / "a.png").cause
    assert "No such file" in fault(tmp_path / "a.bmp", 450).cause
    (tmp_path / "b.png").mkdir()
    assert "directory" in fault(tmp_path / "b.png").cause


def outcome(path):
    """The pixels, or the Fault; anything else that is raised ends the test."""
    try:
        return read_image(path)
    except DataFault as error:
        return error.args[0]


SMALL = {"BMP": "a.bmp", "PNG": "a.png", "TIFF": "a.tif", "JPEG": "a.jpg"}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.filterwarnings("ignore")
def test_a_file_cut_anywhere_is_whole_or_a_fault(tmp_path, kind):
    content = saved(noise(9, 7), kind)
    path = tmp_path / SMALL[kind]
    path.write_bytes(content)
    whole = read_image(path)
    faults = 0
    for length in range(len(content)):
        path.write_bytes(content[:length])
        found = outcome(path)
        if isinstance(found, Fault):
            assert found.path == path
            faults += 1
        else:
            assert np.array_equal(found, whole), length
    # Only what follows the pixels (PNG's last chunks) may be missing.
    assert faults >= len(content) - 20


@pytest.mark.parametrize("kind", ["BMP", "PNG", "TIFF"])
@pytest.mark.filterwarnings("ignore")
def test_a_flipped_bit_is_a_fault_or_other_pixels_and_nothing_else(tmp_path, kind):
    """Whatever Pillow raises, one damaged file must not end a check of thousands, unnamed."""
    content = saved(noise(3, 2), kind)
    path = tmp_path / SMALL[kind]
    escaped, faults = {}, 0
    for place in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            faults += isinstance(outcome(path), Fault)
        except Exception as error:
            escaped[place] = repr(error)
    assert escaped == {}
    assert faults > 8


# --- the centre


@pytest.mark.parametrize(
    ("height", "width"), [(450, 450), (451, 450), (300, 301), (299, 10), (1, 700), (3, 2), (64, 63)]
)
@pytest.mark.parametrize("crop", [300, 299, 64, 6, 5, 1])
def test_the_centre_equals_pillow(height, width, crop):
    image = noise(height, width)
    found = central(image, crop)
    assert (found.dtype, found.shape) == (np.uint8, (crop, crop, 3))
    left, top = (round((length - crop) / 2) for length in (width, height))
    # Pillow fills what lies outside with black.
    oracle = Image.fromarray(image).crop((left, top, left + crop, top + crop))
    assert np.array_equal(found, np.asarray(oracle))


@pytest.mark.parametrize(
    ("side", "crop", "first"),
    [(450, 299, 76), (450, 297, 76), (450, 300, 75), (7, 4, 2), (5, 4, 0)],
)
def test_an_odd_margin_rounds_half_to_even(side, crop, first):
    image = noise(side, side)
    wanted = image[first : first + crop, first : first + crop]
    assert np.array_equal(central(image, crop), wanted)
    pixels = Image.fromarray(image)
    assert np.array_equal(np.asarray(center_crop(pixels, crop)), wanted)


def test_a_small_image_lies_in_the_middle_of_black():
    image = noise(10, 4)
    found = central(image, 12)
    assert np.array_equal(found[1:11, 4:8], image)
    found[1:11, 4:8] = 0
    assert not found.any()


def test_the_centre_is_a_copy_that_may_be_changed():
    image = noise(9, 9)
    central(image, 9)[:] = 0
    assert np.array_equal(image, noise(9, 9))
