"""Picture files that Pillow does not write: interlaced PNG, 16-bit colour TIFF, colour profiles.

Takes pixels or numbers; gives bytes.
"""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Colorants of sRGB and of Adobe RGB (1998), adapted to D50: rows are red, green and blue.
SRGB = ((0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
ADOBE = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
_D50 = (0.9642, 1.0, 0.8249)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def moving(frames: Sequence[Image.Image], kind: str, **options: Any) -> bytes:
    """All frames in one file, without loss where the format can."""
    if kind == "WEBP":
        options = {"lossless": True, **options}
    if kind == "AVIF":
        options = {"quality": 95, "subsampling": "4:4:4", **options}
    return encoded(frames[0], kind, save_all=True, append_images=list(frames[1:]), **options)


def png(width: int, height: int, *more: bytes, bits: int = 8, colour: int = 2, **how: Any) -> bytes:
    """A PNG with `more` chunks before its pixels, which are `rows` deflated."""
    head = struct.pack(
        ">IIBBBBB", width, height, bits, colour, 0, 0, 1 if how.get("interlaced") else 0
    )
    body = png_chunk(b"IHDR", head) + b"".join(more)
    body += png_chunk(b"IDAT", zlib.compress(how.get("rows", b""))) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def interlaced_png(rgb: NDArray[np.uint8]) -> bytes:
    """Adam7: seven passes, each a picture of every n-th pixel."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    rows = b""
    for x, y, dx, dy in [*passes, (0, 1, 1, 2)]:
        some = rgb[y::dy, x::dx]
        if some.size:
            rows += b"".join(b"\0" + row.tobytes() for row in some)
    return png(rgb.shape[1], rgb.shape[0], rows=rows, interlaced=True)


def sixteen_bit_tiff(rgb: NDArray[np.uint16]) -> bytes:
    """Uncompressed, little-endian [H, W, 3]."""
    height, width, _ = rgb.shape
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, 8),  # the three numbers of bits lie at byte 8
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 200),
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, rgb.size * 2),
    ]
    head = b"II*\0" + struct.pack("<I", 14) + struct.pack("<HHH", 16, 16, 16)
    head += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return head.ljust(200, b"\0") + rgb.astype("<u2").tobytes()


def rgb_profile(colorants: Sequence[Sequence[float]] = ADOBE, gamma: float = 2.2) -> bytes:
    names = (b"rXYZ", b"gXYZ", b"bXYZ")
    tags = {name: _xyz(colour) for name, colour in zip(names, colorants, strict=True)}
    return _profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma)))


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", {b"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """Of a press whose cyan ink is red, and whose other inks but black are not there."""
    ramp = bytes(range(256))
    white, red, black = (255, 128, 128), (138, 208, 195), (0, 128, 128)  # L, a and b
    cells = b"".join(
        bytes(black if k else red if c else white) for c in (0, 1) for _ in range(4) for k in (0, 1)
    )
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4 + cells + ramp * 3
    return _profile(b"CMYK", {b"A2B0": lut}, kind=b"prtr", pcs=b"Lab ")


def _profile(
    space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ "
) -> bytes:
    text = b"made for a test"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" * 79,
        b"wtpt": _xyz(_D50),
        b"cprt": b"text\0\0\0\0" + text + b"\0",
        **tags,
    }
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    size = offset + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, kind, space, pcs)
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    head += struct.pack(">3i", *(round(value * 65536) for value in _D50))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
