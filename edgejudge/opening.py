"""Encoded bytes -> the pictures inside, opened but not decoded: the frames of one file in order.

Takes bytes; gives `Frames`, or an `InputError`. Only formats that Pillow decodes itself, or the
package of the extra `heif`, are opened. Knows no limits: whoever decodes checks sizes first.
"""

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

from PIL import Image, UnidentifiedImageError

from edgejudge.errors import InputError

__all__ = ["CheckSize", "Frames", "One", "decoder_error", "given", "open_frames"]

CheckSize: TypeAlias = Callable[[int, int], None]  # raises for a width and height over the limits

# Formats that Pillow decodes in its own code or a bundled library. Others call outside programs
# (EPS), or are no pictures that an application would show. The order counts: the first five are
# tried before Pillow imports its other plugins, which takes longer than decoding. JPEG covers MPO.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "AVIF", "TIFF", "JPEG2000")
_READABLE = "AVIF, BMP, GIF, HEIC, ICO, JPEG, JPEG 2000, PNG, PPM, TIFF or WebP"
# Known kinds that are refused, by their first bytes: (offset, bytes, name).
_REFUSED = (
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"8BPS", "Photoshop"),
    (0, b"<svg", "SVG"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL \r\n", "JPEG XL"),
)
# Beginnings of readable kinds: a file that has one and is still not recognised has been damaged.
_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")
_ICON = b"\0\0\1\0"
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1"}
_HEIF_SEQUENCES = {b"hevc", b"hevx", b"msf1"}
_KINDS = {"TIFF": ("more_pages", "page"), "MPO": ("more_pictures", "picture")}


class Frames(Protocol):
    """The pictures of one file. `word` is what one is called, `code` that of the note that tells of
    `several`; `shown` says whether viewers show others than the first. Where `linked`, each is
    drawn over those before it, so that they are taken in turn. `doubt` is what of the file cannot
    be seen at all.
    """

    word: str
    code: str
    several: bool
    shown: bool
    linked: bool
    doubt: str | None

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Width and height of one after another, from headers; may end early or go on for long."""
        ...

    def at(self, place: int, check: CheckSize) -> Image.Image:
        """That frame; nothing is decoded before its size was checked."""
        ...

    def number(self, place: int) -> int:
        """How it is called, counted from 1 in the file."""
        ...


class One:
    """A picture alone."""

    word, code, several, shown, linked = "picture", "", False, True, False
    doubt: str | None = None

    def __init__(self, image: Image.Image, doubt: str | None = None) -> None:
        self._image, self.doubt = image, doubt

    def sizes(self) -> Iterator[tuple[int, int]]:
        yield self._image.size

    def at(self, place: int, check: CheckSize) -> Image.Image:
        check(*self._image.size)
        return self._image

    def number(self, place: int) -> int:
        return place + 1


class _Seekable(One):
    """Frames that Pillow goes through: GIF, PNG, WebP, AVIF, TIFF, MPO."""

    several = True

    def __init__(self, image: Any, data: bytes) -> None:
        super().__init__(image)
        self._data = data
        self.code, self.word = _KINDS.get(image.format, ("animated", "frame"))
        self.linked = image.format not in _KINDS
        self.shown = image.format != "MPO"
        if image.format == "PNG" and (more := _apng_frames(data)) > image.n_frames:
            self.doubt = f"{more} frames are in the file, of which its header counts fewer"

    def sizes(self) -> Iterator[tuple[int, int]]:
        image: Any = self._image
        if image.format == "GIF":
            # Pillow would go through all frames to count them, and there may be millions.
            yield from _gif_sizes(self._data)
            return
        if self.linked:
            for _ in range(image.n_frames):
                yield image.size
            return
        place = 0
        while True:
            try:
                image.seek(place)
            except EOFError:
                break
            except Exception:  # damaged: it is one more, of which decoding will say what is wrong
                yield 1, 1
                break
            yield image.size
            place += 1

    def at(self, place: int, check: CheckSize) -> Image.Image:
        if self._image.tell() != place:
            self._image.seek(place)
        return super().at(place, check)


class _Icon(One):
    """The sizes of an icon, the largest first. Each may hold another picture."""

    code = "more_pictures"

    def __init__(self, data: bytes) -> None:
        from PIL.IcoImagePlugin import IcoFile

        # Not Image.open, which decodes the first one before anyone has seen how large it is.
        self._data, self._icon = data, IcoFile(io.BytesIO(data))
        if not self._icon.entry:
            raise InputError("empty", "the icon has no pictures")
        self.several = len(self._icon.entry) > 1

    def sizes(self) -> Iterator[tuple[int, int]]:
        return (self._size(entry.offset) for entry in self._icon.entry)

    def at(self, place: int, check: CheckSize) -> Image.Image:
        check(*self._size(self._icon.entry[place].offset))
        return self._icon.frame(place)

    def _size(self, offset: int) -> tuple[int, int]:
        """As the picture inside says; the icon's directory may lie."""
        head = self._data[offset : offset + 24]
        if head.startswith(b"\x89PNG"):
            width, height = struct.unpack_from(">II", head, 16)
        else:
            width, height = struct.unpack_from("<ii", head, 4)
            height = abs(height) // 2  # colours, and the mask below them
        return width, height


class _Heif(One):
    """What libheif finds in a HEIC file, the primary picture first."""

    code = "more_pictures"

    def __init__(self, data: bytes, brands: set[bytes]) -> None:
        try:
            import pillow_heif
        except ImportError:
            raise InputError(
                "unsupported_format",
                "HEIC needs a package that is not installed: pip install 'edgejudge[heif]'",
            ) from None
        self._file: Any = pillow_heif.open_heif(data)
        first = self._file.primary_index
        self._order = [first, *(i for i in range(len(self._file)) if i != first)]
        self.several = len(self._order) > 1
        if brands & _HEIF_SEQUENCES:
            self.doubt = "it may hold an image sequence, of which only stills are read"

    def sizes(self) -> Iterator[tuple[int, int]]:
        return (self._file[index].size for index in self._order)

    def at(self, place: int, check: CheckSize) -> Image.Image:
        found = self._file[self._order[place]]
        check(*found.size)
        image: Image.Image = found.to_pillow()
        return image

    def number(self, place: int) -> int:
        return self._order[place] + 1


def given(image: Image.Image) -> Frames:
    """A picture that a caller has opened: it is taken at the frame where that left it."""
    doubt = None
    if getattr(image, "is_animated", False):
        doubt = "it has further frames, of which none is looked at; give the file or its bytes"
    return One(image, doubt)


def open_frames(data: bytes) -> Frames:
    """The pictures of a file, which is recognised by its content."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's size warning: our own limits decide
            return _open(data)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise _unknown(data) from error
    except Exception as error:
        raise decoder_error(error) from error


def decoder_error(error: Exception) -> InputError:
    """Decoders raise whatever they please on damaged data; the caller gets one kind of error."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return InputError("too_many_pixels", "far more pixels than are judged; scale it down")
    if isinstance(error, MemoryError):
        return InputError("out_of_memory", "it does not fit into memory; scale it down")
    reason = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in reason or isinstance(error, EOFError):
        return InputError("truncated", f"the image ends early ({reason}); get the whole file")
    return InputError("undecodable", f"the image is damaged ({reason}); get another copy")


def _open(data: bytes) -> Frames:
    if data.startswith(_ICON):
        return _Icon(data)
    if (brands := _brands(data)) & _HEIF_BRANDS and not brands & _AVIF_BRANDS:
        return _Heif(data, brands)
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    # `is_animated` looks one frame ahead; counting all frames of a hostile file could take minutes.
    if getattr(image, "is_animated", False):
        return _Seekable(image, data)
    doubt = None
    if image.format == "PNG" and (more := _apng_frames(data)) > 1:
        doubt = f"{more} frames are in the file, which its header does not count"
    return One(image, doubt)


def _brands(data: bytes) -> set[bytes]:
    """What an ISO base media file says that it is: its major brand and the compatible ones."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), 4096)
    return {data[8:12], *(data[place : place + 4] for place in range(16, end, 4))}


def _unknown(data: bytes) -> InputError:
    for offset, magic, name in _REFUSED:
        if data[offset : offset + len(magic)] == magic:
            message = f"{name} is not decoded; convert it to {_READABLE}"
            return InputError("unsupported_format", message)
    if data.startswith(_BEGINNINGS) or _brands(data) & (_AVIF_BRANDS | _HEIF_BRANDS):
        return InputError("undecodable", "the image is damaged at its beginning; get another copy")
    return InputError("not_an_image", f"not an image that can be read; expected {_READABLE}")


def _apng_frames(data: bytes) -> int:
    """Frames that a PNG file holds, whatever its header says."""
    if b"fcTL" not in data:
        return 0
    count, place = 0, 8
    while place + 8 <= len(data):
        count += data[place + 4 : place + 8] == b"fcTL"
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return count


def _gif_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """The canvas at each frame, which a frame beyond its edge makes larger, as Pillow does."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    place = 13 + (3 << ((flags & 7) + 1) if flags & 128 else 0)
    while place < len(data) and data[place] != 0x3B:  # ";"
        kind, place = data[place], place + 1
        if kind == 0x21:  # "!", an extension of one kind or another
            place = _past_blocks(data, place + 1)
        elif kind == 0x2C and place + 9 <= len(data):  # ",", a frame
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", data, place)
            width, height = max(width, left + wide), max(height, top + high)
            yield width, height
            place += 9 + (3 << ((flags & 7) + 1) if flags & 128 else 0)
            place = _past_blocks(data, place + 1)
    if place >= len(data):  # cut off: there was one more, or the end of it is missing
        yield width, height


def _past_blocks(data: bytes, place: int) -> int:
    while place < len(data) and data[place]:
        place += 1 + data[place]
    return place + 1
