"""Decoding: every kind of file that Pillow writes, and the hostile ones."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgejudge.errors import InputError
from edgejudge.images import CODES, Limits, decode

RED = (200, 30, 40)


def scene(width: int = 48, height: int = 32) -> Image.Image:
    """Left half red, right half a green ramp: turning and colour errors both show."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[:, : width // 2] = RED
    rgb[:, width // 2 :, 1] = (y * 255 // (height - 1))[:, width // 2 :]
    return Image.fromarray(rgb)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def codes(data: Any) -> dict[str, bool]:
    return {note.code: note.doubtful for note in decode(data).notes}


def failure(data: Any, limits: Limits | None = None) -> str:
    with pytest.raises(InputError) as caught:
        decode(data, limits or Limits())
    assert caught.value.code in CODES
    assert str(caught.value)
    return caught.value.code


def far(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "ICO", "GIF", "WEBP", "JPEG2000"])
def test_exact_formats(kind: str) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    options |= {"sizes": [(48, 32)]} if kind == "ICO" else {}
    picture = decode(encoded(scene(), kind, **options))
    assert picture.rgb.dtype == np.uint8 and picture.rgb.shape == (32, 48, 3)
    assert far(picture.rgb, np.asarray(scene())) <= (4 if kind == "GIF" else 0)
    assert picture.notes == ()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats(kind: str) -> None:
    picture = decode(encoded(scene(), kind, quality=95))
    assert np.abs(picture.rgb.astype(int) - np.asarray(scene())).mean() < 4


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "RGB"])
def test_png_modes(mode: str) -> None:
    picture = decode(encoded(scene().convert(mode), "PNG"))
    expected = np.asarray(scene().convert(mode).convert("RGB"))
    assert far(picture.rgb, expected) == 0
    assert picture.notes == ()  # an alpha channel that hides nothing is no news


def test_content_decides_and_not_the_extension(tmp_path: Path) -> None:
    path = tmp_path / "scene.jpg"
    path.write_bytes(encoded(scene(), "PNG"))
    assert far(decode(path).rgb, np.asarray(scene())) == 0
    assert far(decode(str(path)).rgb, np.asarray(scene())) == 0


def test_pixels_in_memory() -> None:
    rgb = np.asarray(scene())
    assert far(decode(rgb).rgb, rgb) == 0
    assert far(decode(scene()).rgb, rgb) == 0
    assert decode(rgb[:, :, 0]).rgb.shape == (32, 48, 3)
    assert decode(rgb[:, :, :1]).rgb.shape == (32, 48, 3)
    assert far(decode(rgb.astype(np.uint16) * 257).rgb, rgb) == 0
    assert far(decode(rgb[::-1, ::2]).rgb, rgb[::-1, ::2]) == 0
    assert failure(rgb.astype(np.float32) / 255) == "unsupported_pixels"
    assert failure(rgb[None]) == "unsupported_pixels"
    assert failure(rgb[:0]) == "empty"
    with pytest.raises(TypeError, match="an image is a path"):
        decode(42)  # type: ignore[arg-type]


def test_the_callers_image_is_left_alone() -> None:
    image = scene().convert("RGBA")
    before = image.tobytes()
    decode(image)
    assert image.mode == "RGBA" and image.tobytes() == before


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    levels = np.linspace(0, 65535, 48 * 32).reshape(32, 48).astype(np.uint16)
    image = Image.fromarray(levels)
    expected = np.rint(levels / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF", "PPM"):
        rgb = decode(encoded(image, kind)).rgb
        assert far(rgb[:, :, 0], expected) <= 1, kind
        assert rgb.min() == 0 and rgb.max() == 255
    assert far(decode(image).rgb[:, :, 1], expected) <= 1


def test_sixteen_bit_colour_png() -> None:
    rgb16 = np.asarray(scene()).astype(">u2") * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb16)
    data = png(48, 32, bits=16, colour=2, pixels=zlib.compress(rows))
    assert far(decode(data).rgb, np.asarray(scene())) <= 1


def test_inverted_sixteen_bit_tiff() -> None:
    levels = np.full((4, 4), 60000, np.uint16)
    data = encoded(Image.fromarray(levels), "TIFF", tiffinfo={262: 0})
    if Image.open(io.BytesIO(data)).tag_v2[262] == 0:  # type: ignore[attr-defined]
        assert decode(data).rgb.max() < 40


def test_floats_have_no_defined_white() -> None:
    image = Image.fromarray(np.linspace(-3, 900, 64, dtype=np.float32).reshape(8, 8))
    data = encoded(image, "TIFF")
    rgb = decode(data).rgb
    assert (rgb.min(), rgb.max()) == (0, 255)
    assert codes(data) == {"range_unknown": True}
    broken = Image.fromarray(np.full((4, 4), np.nan, np.float32))
    assert failure(encoded(broken, "TIFF")) == "unsupported_pixels"


def test_cmyk() -> None:
    data = encoded(scene().convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(data).rgb.astype(int) - np.asarray(scene())).mean() < 8
    assert codes(data) == {"cmyk": False}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if kind == "JPEG":
        options = {"quality": 95, "subsampling": 0}
    data = encoded(scene(), kind, exif=exif, **options)
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a.transpose(1, 0, 2)[::-1],
    }[orientation](np.asarray(scene()))
    rgb = decode(data).rgb
    assert rgb.shape == upright.shape
    assert np.abs(rgb.astype(int) - upright).mean() < (4 if kind == "JPEG" else 0.01)


def test_hidden_colours_stay_hidden() -> None:
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[:, :, 0] = 255  # red everywhere, but only the middle is opaque
    rgba[8:24, 8:24, 3] = 255
    for image in (Image.fromarray(rgba), encoded(Image.fromarray(rgba), "PNG")):
        rgb = decode(image).rgb
        assert tuple(rgb[0, 0]) == (255, 255, 255) and tuple(rgb[16, 16]) == (255, 0, 0)
        assert codes(image) == {"transparent": False}


def test_light_drawing_on_transparency_is_doubtful() -> None:
    rgba = np.full((32, 32, 4), 255, np.uint8)
    rgba[:8, :, 3] = 0
    assert codes(Image.fromarray(rgba)) == {"transparent": True}
    outlined = rgba.copy()
    outlined[10:31, 2:30, :3] = (20, 90, 200)
    assert codes(Image.fromarray(outlined)) == {"transparent": False}
    nothing = rgba.copy()
    nothing[:, :, 3] = 0
    assert codes(Image.fromarray(nothing)) == {"transparent": True}


def test_transparent_palette_and_grey_files() -> None:
    palette = scene().convert("P")
    index = palette.getpixel((0, 0))
    data = encoded(palette, "PNG", transparency=index)
    assert tuple(decode(data).rgb[0, 0]) == (255, 255, 255)
    assert codes(data) == {"transparent": False}
    grey = Image.fromarray(np.tile(np.array([[0, 30000], [60000, 9000]], np.uint16), (4, 4)))
    data = encoded(grey, "PNG", transparency=30000)
    assert decode(data).rgb[0, 1, 0] == 255 and decode(data).rgb[0, 0, 0] == 0
    assert "transparent" in codes(data)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_only_the_first_frame_is_judged_and_said_so(kind: str) -> None:
    frames = [scene(), Image.new("RGB", (48, 32), (0, 0, 255))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert codes(data) == {"more_pages" if kind == "TIFF" else "animated": True}
    assert np.abs(decode(data).rgb.astype(int) - np.asarray(scene())).mean() < 12


def test_further_pictures_of_a_camera_file_are_no_doubt() -> None:
    data = encoded(scene(), "MPO", save_all=True, append_images=[scene(24, 16)])
    assert codes(data) == {"more_pictures": False}
    assert decode(data).rgb.shape == (32, 48, 3)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "HSV"]
)
def test_every_mode_in_memory(mode: str) -> None:
    image = Image.new("RGBA", (6, 4), (250, 250, 250, 255))
    through = {"La": "LA", "PA": "LA", "RGBX": "RGB", "CMYK": "RGB", "HSV": "RGB"}.get(mode)
    image = (image.convert(through) if through else image).convert(mode)
    rgb = decode(image).rgb
    assert rgb.shape == (4, 6, 3) and rgb.min() > 240


def test_one_pixel() -> None:
    assert decode(encoded(Image.new("RGB", (1, 1), RED), "PNG")).rgb.tolist() == [[list(RED)]]


def png(width: int, height: int, bits: int = 8, colour: int = 2, pixels: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", pixels or zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30_000, 30_000), (2**31 - 1, 2**31 - 1), (10_000, 9_000)])
def test_pixel_bombs_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    assert failure(png(*size)) == "too_many_pixels"


def test_limits() -> None:
    data = encoded(scene(), "PNG")
    assert failure(data, Limits(max_bytes=len(data) - 1)) == "too_many_bytes"
    assert failure(data, Limits(max_pixels=48 * 32 - 1)) == "too_many_pixels"
    assert failure(data, Limits(max_side=47)) == "too_many_pixels"
    assert failure(np.asarray(scene()), Limits(max_side=47)) == "too_many_pixels"
    assert decode(data, Limits(len(data), 48 * 32, 48)).rgb.shape == (32, 48, 3)


def test_an_icon_that_lies_about_its_size() -> None:
    inside = encoded(Image.new("RGBA", (48, 48), RED), "PNG")
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22)
    icon = struct.pack("<HHH", 0, 1, 1) + entry + inside
    assert decode(icon).rgb.shape == (48, 48, 3)
    assert failure(icon, Limits(max_pixels=1000)) == "too_many_pixels"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_no_prefix_of_a_file_passes_for_the_whole(kind: str) -> None:
    noise = np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    for share in (0.02, 0.2, 0.5, 0.8):
        assert failure(data[: int(len(data) * share)]) in (
            "truncated",
            "undecodable",
            "not_an_image",
        )


def test_random_damage_is_an_error_or_a_picture_and_nothing_else() -> None:
    rng = np.random.default_rng(7)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "AVIF"):
        clean = encoded(scene(), kind)
        for _ in range(60):
            damaged = bytearray(clean)
            for position in rng.integers(0, len(clean), 6):
                damaged[position] = int(rng.integers(0, 256))
            try:
                assert decode(bytes(damaged)).rgb.shape[2] == 3
            except InputError as error:
                assert error.code in CODES


def test_what_is_no_image() -> None:
    assert failure(b"") == "empty"
    assert failure(b"hello, world") == "not_an_image"
    assert failure(b"%PDF-1.7\n") == "unsupported_format"
    assert failure(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "unsupported_format"


def test_what_is_no_file(tmp_path: Path) -> None:
    assert failure(tmp_path / "nothing.png") == "missing"
    assert failure(tmp_path) == "not_a_file"
    assert failure("nul\0byte.png") == "not_a_file"
    (tmp_path / "file").write_bytes(b"x")
    assert failure(tmp_path / "file" / "below.png") == "missing"
    os.mkfifo(tmp_path / "pipe")
    assert failure(tmp_path / "pipe") == "not_a_file"
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(1 << 40)
    assert failure(tmp_path / "huge.png") == "too_many_bytes"
