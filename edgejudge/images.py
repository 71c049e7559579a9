"""From whatever a caller has to the pixels that are judged: uint8 RGB, upright, on a background.

Takes a path, encoded bytes, a PIL image or a numpy array; gives `Picture` or an `InputError` whose
code is one of CODES. A file may be seen in several ways: it has frames, and transparency shows what
lies behind. Each way is a variant. Inputs are hostile: sizes are checked before pixels exist, and
whatever a decoder raises becomes an error. Knows no model.
"""

import errno
import hashlib
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgejudge.errors import InputError
from edgejudge.frames import Survey, Unlike, chosen, survey
from edgejudge.opening import Frames, One, decoder_error, given, open_frames
from edgejudge.pixels import Shown, to_rgb
from edgejudge.verdict import Note, SeenIn

__all__ = [
    "CODES",
    "DEFAULT_LIMITS",
    "ImageInput",
    "Limits",
    "Picture",
    "Variant",
    "decode",
    "decode_all",
    "read_bytes",
]

ImageInput: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.generic]

CODES = {
    "missing": "there is nothing at this path",
    "not_a_file": "a folder, a pipe, a socket or a device",
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

_SHOWN_NUMBERS = 12  # in a note


@dataclass(frozen=True, slots=True)
class Limits:
    """What a hostile file may ask for. 64 Mpx of RGB are 183 MiB.

    `frames` are judged of a file that has more. To find them at most `max_frames` are gone through,
    and as many as have `max_frame_pixels` together.
    """

    max_bytes: int = 64 << 20
    max_pixels: int = 64_000_000
    max_side: int = 65_535
    frames: int = 8
    max_frames: int = 1000
    max_frame_pixels: int = 128_000_000

    def __post_init__(self) -> None:
        if min(self.frames, self.max_frames) < 1:
            raise ValueError("at least 1 frame is looked at")


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """One way in which a viewer may see a file; `seen_in` is None where there is one only."""

    rgb: NDArray[np.uint8]  # [H, W, 3]
    seen_in: SeenIn | None


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """What the model sees, and what a reader should know about how it came about."""

    variants: tuple[Variant, ...]
    notes: tuple[Note, ...]

    @property
    def rgb(self) -> NDArray[np.uint8]:
        """The first variant's pixels [H, W, 3]."""
        return self.variants[0].rgb


DEFAULT_LIMITS = Limits()


def decode(image: ImageInput, limits: Limits = DEFAULT_LIMITS) -> Picture:
    """The first frame on white, and doubtful notes about what else a viewer may see; an InputError,
    or a TypeError for what is no image.
    """
    frames = _frames(image, limits)
    shown = _shown(frames, 0, limits, every=False)
    notes = _doubts(frames)
    if frames.several:
        message = f"only the first {frames.word} is judged"
        notes.append(Note(frames.code, message, doubtful=frames.shown))
    return Picture((Variant(shown.rgbs[0][1], None),), (*notes, *shown.notes))


def decode_all(
    image: ImageInput,
    limits: Limits = DEFAULT_LIMITS,
    check: Callable[[], None] = lambda: None,
) -> Picture:
    """Every variant that is to be judged; raises as `decode` does. `check` is called before each
    frame. A PIL image is taken at the frame where its caller left it.
    """
    frames = _frames(image, limits)
    if frames.several:
        return _through(frames, limits, check)
    shown = _shown(frames, 0, limits, every=True)
    return Picture(tuple(_variants(shown, None)), (*_doubts(frames), *shown.notes))


def _through(frames: Frames, limits: Limits, check: Callable[[], None]) -> Picture:
    """All frames within the limits are decoded in turn; those that are not judged are compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = survey(_sizes(frames, limits), limits.max_frames, limits.max_frame_pixels)
    wanted = set(chosen(found.reach, limits.frames))
    variants: dict[bytes, Variant] = {}
    notes: list[Note] = []
    judged: list[int] = []
    unlike = Unlike()
    for place in range(found.reach):
        check()
        number = frames.number(place)
        try:
            shown = _shown(frames, place, limits, every=True)
        except InputError as error:
            if place == 0:  # what is told of the file is what is wrong with its first picture
                raise
            notes.append(_damaged(frames, number, error))
            if frames.linked:
                break
            continue
        rgbs = [rgb for _, rgb in shown.rgbs]
        if place not in wanted:
            unlike.passed(number, rgbs)
            continue
        unlike.judged(rgbs)
        judged.append(number)
        notes += shown.notes
        for variant in _variants(shown, number):
            variants.setdefault(_digest(variant.rgb), variant)
    notes = [*_doubts(frames), _told(frames, found, judged), *notes]
    notes += _left_out(frames, found, unlike.numbers, limits)
    return Picture(tuple(variants.values()), tuple(dict.fromkeys(notes)))


def read_bytes(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The bytes of a regular file; pipes and devices are refused because they may never end."""
    try:
        # Before it is opened, which may set a device to work.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _not_a_file()
        # O_NONBLOCK: it may have become a pipe, and to open one would wait for who writes to it.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _O_BINARY)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise _not_a_file()
            if status.st_size > limits.max_bytes:
                raise _too_many_bytes(status.st_size, limits)
            data = file.read(limits.max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError("missing", "no such file; check the path") from error
    except (IsADirectoryError, ValueError) as error:  # ValueError: a null byte in the path
        raise _not_a_file() from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno == errno.ELOOP:
            raise InputError("missing", f"no such file ({reason}); check the path") from error
        raise InputError("unreadable", f"cannot be read: {reason}") from error
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(len(data), limits)
    return data


_O_BINARY = getattr(os, "O_BINARY", 0)


def _not_a_file() -> InputError:
    return InputError("not_a_file", "not a regular file; give an image file")


def _frames(image: ImageInput, limits: Limits) -> Frames:
    if isinstance(image, str | os.PathLike):
        image = read_bytes(image, limits)
    if isinstance(image, bytes | bytearray | memoryview):
        if not len(image):
            raise InputError("empty", "the file is empty")
        if len(image) > limits.max_bytes:
            raise _too_many_bytes(len(image), limits)
        return open_frames(bytes(image))
    if isinstance(image, np.ndarray):
        return One(_from_array(image, limits))
    if isinstance(image, Image.Image):
        return given(image)
    raise TypeError(
        f"an image is a path, bytes, a PIL image or a numpy array, not {type(image).__name__}"
    )


def _sizes(frames: Frames, limits: Limits) -> Iterator[tuple[int, int]]:
    """As long as headers can be read; decoding tells what is wrong with the next one."""
    try:
        for width, height in frames.sizes():
            if frames.linked and width * height > limits.max_pixels:
                # To turn to this one takes memory already, and none behind it can be had without.
                yield limits.max_frame_pixels + 1, 1
            else:
                yield width, height
    except Exception:
        yield 1, 1


def _shown(frames: Frames, place: int, limits: Limits, every: bool) -> Shown:
    """One frame, over `every` background or on white alone."""

    def check(width: int, height: int) -> None:
        _check_size(width, height, limits)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shown = to_rgb(frames.at(place, check), every)
    except Exception as error:
        raise decoder_error(error) from error
    # Again: a header may claim another size than what is found behind it.
    height, width, _ = shown.rgbs[0][1].shape
    check(width, height)
    return shown


def _variants(shown: Shown, number: int | None) -> list[Variant]:
    return [
        Variant(rgb, None if number is None and background is None else SeenIn(number, background))
        for background, rgb in shown.rgbs
    ]


def _digest(rgb: NDArray[np.uint8]) -> bytes:
    pixels = hashlib.sha256(repr(rgb.shape).encode())
    pixels.update(np.ascontiguousarray(rgb).data)
    return pixels.digest()


def _doubts(frames: Frames) -> list[Note]:
    return [Note("unseen", frames.doubt, doubtful=True)] if frames.doubt else []


def _told(frames: Frames, found: Survey, judged: Sequence[int]) -> Note:
    of = f"more than {found.count}" if found.more else str(found.count)
    return Note(frames.code, f"{frames.word}s {_listed(judged)} of {of} are judged")


def _damaged(frames: Frames, number: int, error: InputError) -> Note:
    rest = ", and none behind it was looked at" if frames.linked else ""
    message = f"{frames.word} {number} cannot be judged{rest}: {error}"
    return Note("variant_failed", message, doubtful=frames.shown)


def _left_out(frames: Frames, found: Survey, unlike: Sequence[int], limits: Limits) -> list[Note]:
    notes = []
    word = frames.word
    if found.more or found.reach < found.count:
        message = (
            f"no {word} behind the first {found.reach} was looked at, which is the limit of "
            f"{limits.max_frames} {word}s or {limits.max_frame_pixels} pixels"
        )
        notes.append(Note("unseen", message, doubtful=True))
    if unlike:
        message = f"{word}s {_listed(unlike)} look unlike those that are judged; judge more of them"
        notes.append(Note("unseen", message, doubtful=True))
    return notes


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN_NUMBERS]))
    more = len(numbers) - _SHOWN_NUMBERS
    return shown if more <= 0 else f"{shown} and {more} more"


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
