"""Image files of many formats give the pixels that they show, or an error that says why not."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from segjax.data import images
from support.errors import refusal

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
PICTURE = Image.fromarray(RGB)
FULL = np.random.default_rng(1).integers(0, 65536, (6, 9, 3)).astype(np.uint16)
FULL[0, 0] = 65535


def reason(path, channels=3, page=0):
    return refusal(images.read_image, path, channels, page)


def png(pixels, kind):
    """Encode 16-bit pixels as PNG of a color type, which Pillow writes for gray alone."""

    def chunk(name, data):
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    height, width = pixels.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tif", "jp2"])
def test_rgb_is_read_as_it_is_and_as_luma(tmp_path, suffix):
    PICTURE.save(tmp_path / f"image.{suffix}")
    found = images.read_image(tmp_path / f"image.{suffix}", 3)
    np.testing.assert_array_equal(found, RGB, strict=True)
    gray = images.read_image(tmp_path / f"image.{suffix}", 1)
    np.testing.assert_array_equal(gray, np.asarray(PICTURE.convert("L"))[..., None], strict=True)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{suffix}"
    PICTURE.save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(images.read_image(path, 3), expected, strict=True)


def exif_of(*entries):
    """Return EXIF data with entries of (tag, type, count, four bytes)."""
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)


def test_tags_that_cannot_be_written_do_not_matter(tmp_path):
    path = tmp_path / "image.jpg"
    turned = (0x0112, 3, 1, b"\6\0\0\0")
    PICTURE.save(path, quality=100, exif=exif_of((0x0100, 2, 4, b"tall"), turned))
    with Image.open(path) as image:
        expected = np.rot90(np.asarray(image), 3)
        with pytest.raises(struct.error):
            ImageOps.exif_transpose(image)
    np.testing.assert_array_equal(images.read_image(path, 3), expected)


@pytest.mark.parametrize("data", [b"damaged!", b"II*\0\x08\0\0\0\5\0"])
def test_damaged_exif_is_said(tmp_path, capsys, data):
    path = tmp_path / "image.jpg"
    PICTURE.save(path, exif=b"Exif\0\0" + data)
    images.read_image(path, 3)
    said = f"segjax: warning: image {path} is taken as upright, as its EXIF data are damaged\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("suffix", "options"), [("tif", {}), ("png", {}), ("webp", {"lossless": True}), ("gif", {})]
)
def test_every_page_is_read(tmp_path, suffix, options):
    path = tmp_path / f"image.{suffix}"
    pages = [Image.fromarray(np.full((6, 9), value, np.uint8)) for value in (20, 200, 90)]
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)
    assert images.list_pages(path) == ([0, 1, 2], 0)
    for page, expected in enumerate(pages):
        found = images.read_image(path, 1, page)[..., 0]
        np.testing.assert_array_equal(found, np.asarray(expected), strict=True)
    if suffix == "tif":
        path.write_bytes(path.read_bytes()[:-300])  # the directory of the last page
        assert f"image {path} cannot be read" in reason(path, 1, 2)


def test_previews_are_counted_not_read(tmp_path):
    path = tmp_path / "photo.jpg"
    PICTURE.save(path, "MPO", save_all=True, append_images=[PICTURE.resize((3, 2))])
    assert images.list_pages(path) == ([0], 1)
    path = tmp_path / "pyramid.tif"
    small = PICTURE.resize((3, 2))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    PICTURE.save(path, save_all=True, append_images=[small])
    assert images.list_pages(path) == ([0], 1)
    PICTURE.save(path, tiffinfo={254: 1})  # nothing but a preview
    assert images.list_pages(path) == ([0], 0)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_gray_is_scaled_if_it_has_the_full_range(tmp_path, suffix):
    path, values = tmp_path / f"image.{suffix}", FULL[..., 0]
    Image.fromarray(values).save(path)
    expected = np.rint(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(images.read_image(path, 1)[..., 0], expected, strict=True)
    np.testing.assert_array_equal(images.read_image(path, 3)[..., 2], expected, strict=True)
    for bits in (8, 12, 14):
        narrow = values >> (16 - bits)
        Image.fromarray(narrow).save(path)
        found = reason(path)
        assert f"it has 16 bits, but its greatest value is {2**bits - 1}, which fits 14" in found
    Image.fromarray(values * 0).save(path)
    assert not images.read_image(path, 1).any()


def test_16_bit_rgb_keeps_its_upper_bits_if_it_has_the_full_range(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png(FULL, 2))
    np.testing.assert_array_equal(images.read_image(path, 3), (FULL >> 8).astype(np.uint8))
    path.write_bytes(png(FULL >> 4, 2))
    assert "greatest value is at most 4095, which fits 14 bits" in reason(path)
    for greatest, is_refused in ((65535, True), (4095, False)):
        head = b"P6 9 6 %d\n" % greatest
        (tmp_path / "image.ppm").write_bytes(head + (FULL >> 4).astype(">u2").tobytes())
        if is_refused:
            assert "greatest value is at most 4351" in reason(tmp_path / "image.ppm")
        else:
            assert images.read_image(tmp_path / "image.ppm", 3).max() == 255


def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path):
    path = tmp_path / "image.png"
    opaque = np.concatenate([FULL, np.full((6, 9, 1), 65535, np.uint16)], -1)
    path.write_bytes(png(opaque, 6))
    np.testing.assert_array_equal(images.read_image(path, 3), (FULL >> 8).astype(np.uint8))
    opaque[2, 3, 3] = 65534
    path.write_bytes(png(opaque, 6))
    np.testing.assert_array_equal(images.read_image(path, 3), (FULL >> 8).astype(np.uint8))
    opaque[2, 3, 3] = 256
    path.write_bytes(png(opaque, 6))
    assert "has transparent pixels; lay it on a background color first" in reason(path)

    for mode in ("RGBA", "LA"):
        alpha = PICTURE.convert(mode)
        alpha.save(path)
        expected = np.asarray(alpha.convert("RGB"))
        np.testing.assert_array_equal(images.read_image(path, 3), expected, strict=True)
        alpha.putalpha(254)
        alpha.save(path)
        assert "transparent" in reason(path)

    palette = PICTURE.quantize(8)
    palette.save(path)
    np.testing.assert_array_equal(images.read_image(path, 3), np.asarray(palette.convert("RGB")))
    palette.save(path, transparency=int(np.asarray(palette)[0, 0]))
    assert "transparent" in reason(path)
    PICTURE.save(path, transparency=tuple(map(int, RGB[0, 0])))
    assert "transparent" in reason(path)


def test_one_bit_is_black_and_white(tmp_path):
    bits = Image.fromarray(RGB[..., 0] > 127)
    for suffix in ("png", "tif", "pbm"):
        bits.save(tmp_path / f"image.{suffix}")
        found = images.read_image(tmp_path / f"image.{suffix}", 1)[..., 0]
        np.testing.assert_array_equal(found, np.where(RGB[..., 0] > 127, 255, 0).astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "picture", "said"),
    [
        (
            "a.tif",
            Image.fromarray(RGB[..., 0] / np.float32(255)),
            "floating-point values, expected",
        ),
        ("a.tif", Image.fromarray(RGB[..., 0].astype(np.int32)), "signed integers, expected"),
        ("a.jpg", PICTURE.convert("CMYK"), "color space CMYK, expected RGB"),
    ],
)
def test_what_has_no_certain_meaning_is_refused(tmp_path, name, picture, said):
    picture.save(tmp_path / name)
    assert f"image {tmp_path / name} cannot be read: it has {said}" in reason(tmp_path / name)


@pytest.mark.parametrize(
    ("tag", "value", "said"),
    [(262, 0, "16 bits with 0 as white"), (339, 2, "signed integers")],
)
def test_tiff_whose_numbers_mean_something_else_is_refused(tmp_path, tag, value, said):
    path = tmp_path / "image.tif"
    Image.fromarray(FULL[..., 0] if tag == 262 else RGB[..., 0]).save(path, tiffinfo={339: 1})
    content = path.read_bytes()
    for kind in (1, 0):
        entry = struct.pack("<HHIHH", tag, 3, 1, kind, 0)
        if entry in content:
            content = content.replace(entry, struct.pack("<HHIHH", tag, 3, 1, value, 0))
    path.write_bytes(content)
    assert said in reason(path)


def test_large_images_are_read_up_to_the_limit(tmp_path, monkeypatch):
    limit = Image.MAX_IMAGE_PIXELS
    path = tmp_path / "image.png"
    PICTURE.save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # a bomb to Pillow
    np.testing.assert_array_equal(images.read_image(path, 3), RGB)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert limit < images.MOST_PIXELS
    monkeypatch.setattr(images, "MOST_PIXELS", 53)
    assert "it has 9x6 pixels, expected at most 53; scale it down or cut it" in reason(path)
    # Counting frames could take minutes.
    assert "9x6 pixels" in refusal(images.list_pages, path)


def test_an_archive_of_arrays_is_refused(tmp_path):
    path = tmp_path / "image.npy"
    with path.open("wb") as file:
        np.savez(file, RGB)
    assert f"image {path} cannot be read: the magic string is not correct" in reason(path)


def test_files_that_are_no_images_are_named(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG but no more")
    assert f"image {path} cannot be read: it is damaged or none of " in reason(path)
    assert "JPEG2000, PNG, PPM, TIFF, WEBP" in reason(path)
    assert "No such file or directory" in reason(tmp_path / "nothing.png")
    assert "cannot be read" in refusal(images.list_pages, path)
