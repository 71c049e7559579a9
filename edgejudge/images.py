"""From whatever a caller has to the pixels that are judged: uint8 RGB, upright, on white.

Takes a path, encoded bytes, a PIL image or a numpy array; gives `Picture` or an `InputError` whose
code is one of CODES. Inputs are hostile: sizes are checked before pixels exist, only formats that
Pillow decodes itself are opened, and whatever a decoder raises becomes an error. Knows no model.
"""

import io
import os
import stat
import warnings
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edgejudge.errors import InputError
from edgejudge.pixels import to_rgb
from edgejudge.verdict import Note

__all__ = ["CODES", "ImageInput", "Limits", "Picture", "decode", "read_bytes"]

ImageInput: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.generic]

CODES = {
    "missing": "there is nothing at this path",
    "not_a_file": "a folder, a pipe or a device",
    "unreadable": "the system refused to read it",
    "empty": "no bytes, or no pixels",
    "too_many_bytes": "more bytes than the limit",
    "too_many_pixels": "more pixels than the limit, or one side too long",
    "not_an_image": "no known image format",
    "unsupported_format": "an image of a kind that is not decoded",
    "truncated": "the image ends early",
    "undecodable": "the image is damaged",
    "unsupported_pixels": "pixels of a kind that has no defined look",
    "out_of_memory": "it did not fit into memory",
    "too_long": "its tokens and the policy's do not fit into the model's context",
    "engine_failed": "the picture was read, but the engine could not judge it",
    "over_budget": "it does not fit the memory budget",
    "no_room": "what layers hand on does not fit the disk",
}

# Formats that Pillow decodes in its own code or a bundled library. Others call outside programs
# (EPS), or are no pictures that an application would show. The order counts: the first five are
# tried before Pillow imports its other plugins, which takes longer than decoding. JPEG covers MPO.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "AVIF", "TIFF", "JPEG2000", "ICO")
_READABLE = "AVIF, BMP, GIF, ICO, JPEG, JPEG 2000, PNG, PPM, TIFF or WebP"
# Known kinds that are refused, by their first bytes: (offset, bytes, name).
_REFUSED = (
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"8BPS", "Photoshop"),
    (0, b"<svg", "SVG"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL \r\n", "JPEG XL"),
)
# Beginnings of readable kinds: a file that has one and is still not recognised has been damaged.
_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a hostile file may ask for. 64 Mpx of RGB are 183 MiB."""

    max_bytes: int = 64 << 20
    max_pixels: int = 64_000_000
    max_side: int = 65_535


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """What the model sees, and what a reader should know about how it came about."""

    rgb: NDArray[np.uint8]  # [H, W, 3]
    notes: tuple[Note, ...]


DEFAULT_LIMITS = Limits()


def decode(image: ImageInput, limits: Limits = DEFAULT_LIMITS) -> Picture:
    """The picture that will be judged, or an InputError; a TypeError for what is no image."""
    if isinstance(image, str | os.PathLike):
        image = read_bytes(image, limits)
    if isinstance(image, bytes | bytearray | memoryview):
        return _picture(_open(bytes(image), limits), limits)
    if isinstance(image, np.ndarray):
        return _picture(_from_array(image, limits), limits)
    if isinstance(image, Image.Image):
        return _picture(image, limits)
    raise TypeError(
        f"an image is a path, bytes, a PIL image or a numpy array, not {type(image).__name__}"
    )


def _opened(handle: int) -> io.FileIO:
    """A file that owns the handle; of a folder none can be made, and the handle is closed."""
    try:
        return io.FileIO(handle, "rb")
    except OSError:
        os.close(handle)
        raise


def read_bytes(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The bytes of a regular file; pipes and devices are refused because they may never end."""
    try:
        # O_NONBLOCK: opening a pipe nobody writes to would otherwise wait forever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _O_BINARY)
        with _opened(handle) as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise InputError("not_a_file", "not a regular file; give an image file")
            if status.st_size > limits.max_bytes:
                raise _too_many_bytes(status.st_size, limits)
            data = file.read(limits.max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError("missing", "no such file; check the path") from error
    except (IsADirectoryError, ValueError) as error:  # ValueError: a null byte in the path
        raise InputError("not_a_file", "not a regular file; give an image file") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError("unreadable", f"cannot be read: {reason}") from error
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(len(data), limits)
    return data


_O_BINARY = getattr(os, "O_BINARY", 0)


def _open(data: bytes, limits: Limits) -> Image.Image:
    if not data:
        raise InputError("empty", "the file is empty")
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(len(data), limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's size warning: our own limit decides
            return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        for offset, magic, name in _REFUSED:
            if data[offset : offset + len(magic)] == magic:
                raise InputError(
                    "unsupported_format", f"{name} is not decoded; convert it to {_READABLE}"
                ) from error
        if data.startswith(_BEGINNINGS):
            raise InputError(
                "undecodable", "the image is damaged at its beginning; get another copy"
            ) from error
        raise InputError(
            "not_an_image", f"not an image that can be read; expected {_READABLE}"
        ) from error
    except Exception as error:
        raise _decoder_error(error) from error


def _picture(image: Image.Image, limits: Limits) -> Picture:
    _check_size(image.width, image.height, limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rgb, notes = to_rgb(image)
    except InputError:
        raise
    except Exception as error:
        raise _decoder_error(error) from error
    # Again: an icon's directory may claim another size than the picture inside it has.
    _check_size(rgb.shape[1], rgb.shape[0], limits)
    return Picture(rgb, notes)


def _check_size(width: int, height: int, limits: Limits) -> None:
    """Before a decoder allocates: a few bytes of header can claim gigabytes of pixels."""
    if width < 1 or height < 1:
        raise InputError("empty", "the picture has no pixels")
    if width * height > limits.max_pixels:
        raise InputError(
            "too_many_pixels",
            f"{width} x {height} pixels; at most {limits.max_pixels} are judged, scale it down",
        )
    if max(width, height) > limits.max_side:
        raise InputError(
            "too_many_pixels",
            f"{width} x {height}: a side is at most {limits.max_side} pixels, scale it down",
        )


def _from_array(array: NDArray[np.generic], limits: Limits) -> Image.Image:
    """[H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8 or uint16, as Pillow's image."""
    shape = " x ".join(map(str, array.shape))
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise InputError(
            "unsupported_pixels", f"an array of {shape}; expected H x W, H x W x 3 or H x W x 4"
        )
    if array.dtype not in (np.uint8, np.uint16):
        raise InputError(
            "unsupported_pixels",
            f"an array of {array.dtype}; expected uint8 in 0..255 or uint16 in 0..65535",
        )
    _check_size(array.shape[1], array.shape[0], limits)
    if array.dtype == np.uint16:
        # 65535 is white: a plain cast would keep the low bytes, which are noise.
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array))


def _too_many_bytes(size_bytes: int, limits: Limits) -> InputError:
    return InputError(
        "too_many_bytes", f"at least {size_bytes} bytes; at most {limits.max_bytes} are read"
    )


def _decoder_error(error: Exception) -> InputError:
    """Decoders raise whatever they please on damaged data; the caller gets one kind of error."""
    if isinstance(error, Image.DecompressionBombError):
        return InputError("too_many_pixels", "far more pixels than are judged; scale it down")
    if isinstance(error, MemoryError):
        return InputError("out_of_memory", "it does not fit into memory; scale it down")
    reason = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in reason or isinstance(error, EOFError):
        return InputError("truncated", f"the image ends early ({reason}); get the whole file")
    return InputError("undecodable", f"the image is damaged ({reason}); get another copy")
