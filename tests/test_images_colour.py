"""Colour profiles, depths and scans of files: what is judged is what a viewer shows."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from edgejudge.images import decode, decode_all
from made_pictures import (
    ADOBE,
    SRGB,
    cmyk_profile,
    encoded,
    grey_profile,
    interlaced_png,
    png,
    png_chunk,
    rgb_profile,
    sixteen_bit_tiff,
)

COLOURS = np.array([[(200, 100, 50), (30, 60, 90), (128, 128, 128), (0, 0, 0)]], np.uint8)


def picture(colours: NDArray[np.uint8] = COLOURS) -> Image.Image:
    return Image.fromarray(np.repeat(np.repeat(colours, 8, axis=0), 8, axis=1))


def as_srgb(rgb: NDArray[np.uint8], colorants: Any, gamma: float) -> NDArray[np.float64]:
    """What the ICC specification says of a profile of three colorants and a gamma."""
    linear = (rgb / 255.0) ** gamma @ np.array(colorants)
    linear = np.clip(linear @ np.linalg.inv(np.array(SRGB)), 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(encoded * 255)


def far(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max())


def notes(data: Any) -> dict[str, bool]:
    return {note.code: note.doubtful for note in decode_all(data).notes}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
def test_a_colour_profile_is_obeyed(kind: str) -> None:
    options: dict[str, Any] = {"icc_profile": rgb_profile()}
    options |= {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(kind, {})
    options |= {"quality": 98, "subsampling": "4:4:4"} if kind == "AVIF" else {}
    rgb = decode(encoded(picture(), kind, **options)).rgb
    wanted = as_srgb(COLOURS, ADOBE, 2.2)
    assert far(wanted, COLOURS) > 20
    assert far(rgb[4, 4::8], wanted[0]) <= (5 if kind in ("AVIF", "JPEG") else 2)
    assert notes(encoded(picture(), kind, **options)) == {}


def test_a_profile_that_is_srgb_in_effect_changes_nothing() -> None:
    plain = decode(encoded(picture(), "PNG")).rgb
    real = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert far(decode(encoded(picture(), "PNG", icc_profile=real)).rgb, plain) == 0
    # By what it does: this one is called sRGB by nobody, and the other one lies about its name.
    liar = rgb_profile(gamma=1.0).replace(b"made for a test", b"sRGB IEC61966-2")
    assert far(decode(encoded(picture(), "PNG", icc_profile=liar)).rgb, plain) > 20


def test_a_profile_that_makes_another_picture_of_it_is_doubtful() -> None:
    swapped = rgb_profile(SRGB[::-1])
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    data = encoded(red, "PNG", icc_profile=swapped)
    assert far(decode(data).rgb[0, 0], np.array((0, 0, 255))) <= 2
    assert notes(data) == {"profile_strange": True}


@pytest.mark.parametrize("broken", [b"\0" * 200, b"x", rgb_profile()[:200], b"acsp" * 300])
def test_a_broken_profile_is_a_note(broken: bytes) -> None:
    data = encoded(picture(), "PNG", icc_profile=broken)
    assert far(decode(data).rgb, np.asarray(picture())) == 0
    assert notes(data) == {"profile_unusable": False}


def test_a_profile_of_another_space_is_a_note() -> None:
    data = encoded(picture(), "PNG", icc_profile=cmyk_profile())
    assert notes(data) == {"profile_unusable": False}
    data = encoded(picture(), "PNG", icc_profile=grey_profile(1.0))
    assert notes(data) == {"profile_unusable": False}


def test_grey_with_a_profile() -> None:
    grey = Image.new("L", (8, 8), 128)
    linear = decode(encoded(grey, "PNG", icc_profile=grey_profile(1.0))).rgb
    assert linear.shape == (8, 8, 3) and abs(int(linear[0, 0, 0]) - 188) <= 2
    deep = Image.fromarray(np.full((8, 8), 32896, np.uint16))
    linear = decode(encoded(deep, "PNG", icc_profile=grey_profile(1.0))).rgb
    assert abs(int(linear[0, 0, 0]) - 188) <= 2
    coloured = decode(encoded(grey, "PNG", icc_profile=rgb_profile(gamma=1.0))).rgb
    assert abs(int(coloured[0, 0, 0]) - 188) <= 2


def test_transparency_with_a_profile() -> None:
    rgba = picture().convert("RGBA")
    rgba.putalpha(Image.new("L", rgba.size, 255))
    rgba.paste((0, 0, 0, 0), (0, 0, 8, 8))
    found = decode_all(encoded(rgba, "PNG", icc_profile=rgb_profile())).variants
    assert [tuple(each.rgb[0, 0]) for each in found] == [(255,) * 3, (0,) * 3]
    wanted = as_srgb(COLOURS, ADOBE, 2.2)
    assert all(far(each.rgb[4, 12::8], wanted[0, 1:]) <= 2 for each in found)
    faded = Image.new("LA", (4, 4), (128, 0))
    faded.paste((128, 255), (0, 0, 2, 4))
    found = decode_all(encoded(faded, "PNG", icc_profile=grey_profile(1.0))).variants
    assert all(abs(int(each.rgb[0, 0, 0]) - 188) <= 2 for each in found)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_with_and_without_a_profile(kind: str) -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    options: dict[str, Any] = {"quality": 95} if kind == "JPEG" else {}
    data = encoded(cyan, kind, **options)
    red, green, blue = decode(data).rgb[8, 8]
    assert red < 20 and green > 230 and blue > 230
    assert notes(data) == {"cmyk": False}
    data = encoded(cyan, kind, icc_profile=cmyk_profile(), **options)
    red, green, blue = decode(data).rgb[8, 8]
    assert red > 200 and green < 60 and blue < 60
    assert notes(data) == {}
    data = encoded(cyan, kind, icc_profile=b"not a profile at all", **options)
    assert notes(data) == {"profile_unusable": False, "cmyk": False}


@pytest.mark.parametrize(
    "gamma, doubtful", [(0.45455, False), (0.5556, False), (0.02, True), (1.0, True)]
)
def test_a_gamma_that_some_viewers_obey(gamma: float, doubtful: bool) -> None:
    rows = b"".join(b"\0" + bytes((90, 90, 90)) * 4 for _ in range(4))
    chunk = png_chunk(b"gAMA", round(gamma * 1e5).to_bytes(4, "big"))
    assert notes(png(4, 4, chunk, rows=rows)) == ({"gamma": True} if doubtful else {})
    srgb = png_chunk(b"sRGB", b"\0")
    assert notes(png(4, 4, srgb, chunk, rows=rows)) == {}


def test_interlaced_and_progressive() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (37, 21, 3), np.uint8)
    data = interlaced_png(noise)
    assert Image.open(io.BytesIO(data)).info["interlace"] == 1
    assert far(decode(data).rgb, noise) == 0
    smooth = np.asarray(Image.fromarray(noise).resize((80, 60), Image.Resampling.BICUBIC))
    for options in ({}, {"progressive": True}):
        data = encoded(Image.fromarray(smooth), "JPEG", quality=95, subsampling=0, **options)
        assert ("progressive" in Image.open(io.BytesIO(data)).info) == bool(options)
        assert np.abs(decode(data).rgb.astype(int) - smooth).mean() < 8
    flat = Image.fromarray(noise).quantize(64)
    for interlace in (0, 1):
        data = encoded(flat, "GIF", interlace=interlace)
        assert far(decode(data).rgb, np.asarray(flat.convert("RGB"))) == 0


def test_sixteen_bit_colour_tiff() -> None:
    deep = np.random.default_rng(4).integers(0, 65536, (9, 7, 3)).astype(np.uint16)
    assert far(decode(sixteen_bit_tiff(deep)).rgb, deep / 257.0) <= 1


@pytest.mark.parametrize("size", [(20_000, 10), (10, 20_000), (1, 1), (1, 300), (65_000, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_long_and_small_ones(size: tuple[int, int], kind: str) -> None:
    rgb = decode(encoded(Image.new("RGB", size, (10, 200, 30)), kind)).rgb
    assert rgb.shape == (size[1], size[0], 3)
    assert far(rgb, np.broadcast_to(np.array((10, 200, 30)), rgb.shape)) < 4
