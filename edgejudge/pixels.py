"""One Pillow image of any mode -> upright uint8 RGB, and notes on what had to be decided for it.

Takes an opened image; gives [H, W, 3] pixels, of a transparent one over white and over black. Knows
nothing of files, limits or errors of decoders.

A note is `doubtful`, and keeps a picture from being called safe, only where a viewer may see
something else than what is judged: drawing that vanishes on the one background that was asked for,
a value range that the format does not define, an orientation that cannot be read.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgejudge.colours import gamma_notes, in_srgb
from edgejudge.errors import InputError
from edgejudge.verdict import Background, Note

__all__ = ["BACKGROUNDS", "Shown", "to_rgb"]

# Whatever is drawn differs from one of them, and over any other colour it looks like a mixture.
BACKGROUNDS: dict[Background, tuple[int, int, int]] = {"white": (255, 255, 255), "black": (0, 0, 0)}
_DRAWN_ALPHA = 26  # a tenth of full opacity: fainter marks are hardly seen on any background
_NEAR_LEVELS = 16  # closer than this to the background, in every channel, is lost against it
_LOST_SHARE = 0.25  # share of the drawn pixels that may be lost; a white outline stays below
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """Pixels [H, W, 3] by what they lie on, which is None for an opaque picture."""

    rgbs: tuple[tuple[Background | None, NDArray[np.uint8]], ...]
    notes: tuple[Note, ...]


def to_rgb(image: Image.Image, every: bool = False) -> Shown:
    """The pixels to judge, over white or over `every` background, and what a reader of the verdict
    should know about them.
    """
    notes: list[Note] = []
    image.load()
    turn = None
    try:
        turn = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # EXIF is hostile input too, and its readers raise anything
        message = "its orientation cannot be read; judged as stored"
        notes.append(Note("orientation_unreadable", message, doubtful=True))
    notes += gamma_notes(image)
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image, notes)
    layers: list[tuple[Background | None, Image.Image]]
    if image.has_transparency_data:
        layers = [*_on_backgrounds(image, notes, every)]
    else:
        layers = [(None, _opaque(image, notes))]
    if turn is not None:
        layers = [(background, layer.transpose(turn)) for background, layer in layers]
        notes.append(Note("rotated", "turned upright as its EXIF orientation says"))
    rgbs = tuple((background, np.asarray(layer, np.uint8)) for background, layer in layers)
    return Shown(rgbs, tuple(notes))


def _opaque(image: Image.Image, notes: list[Note]) -> Image.Image:
    image = in_srgb(image, notes)
    if image.mode == "CMYK":
        notes.append(Note("cmyk", "CMYK was converted without a colour profile"))
    if image.mode == "RGB":
        return image
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise InputError(
            "unsupported_pixels", f"pixels of mode {image.mode} are not decoded; use RGB"
        ) from error


def _to_eight_bits(image: Image.Image, notes: list[Note]) -> Image.Image:
    """Grey of 16 bits and more, scaled; Pillow's own conversion would clip it to white."""
    values = np.asarray(image).astype(np.float64)  # [H, W]
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        low, high = 0.0, float(2 ** min(tags.get(_TIFF_BITS, (16,))[0], 16) - 1)
    elif image.format == "PPM" and image.mode == "I":
        low, high = 0.0, 65535.0  # Pillow has scaled the file's own maximum to this
    else:
        if not np.isfinite(values).all():
            raise InputError("unsupported_pixels", "some pixels are not numbers; save it again")
        low, high = float(values.min()), float(values.max())
        if image.mode == "F" and low >= 0.0 and high <= 1.0:
            low, high = 0.0, 1.0
        message = "its format defines no white; its own range of values was taken"
        notes.append(Note("range_unknown", message, doubtful=True))
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0)
    if tags.get(_TIFF_PHOTOMETRIC) == 0:  # WhiteIsZero, which Pillow honours for 8 bits only
        scaled = 1.0 - scaled
    grey = Image.fromarray(np.rint(scaled * 255).astype(np.uint8))
    if "icc_profile" in image.info:
        grey.info["icc_profile"] = image.info["icc_profile"]
    see_through = image.info.get("transparency")
    if isinstance(see_through, int):
        grey.putalpha(Image.fromarray(np.where(values == see_through, 0, 255).astype(np.uint8)))
    return grey


def _on_backgrounds(
    image: Image.Image, notes: list[Note], every: bool
) -> Iterator[tuple[Background | None, Image.Image]]:
    """Composited: dropping the alpha channel would show colours nobody sees."""
    if image.mode == "La":  # premultiplied grey, which Pillow turns into RGBA by this way only
        image = image.convert("LA")
    rgba = _rgba(image, notes)
    alpha = np.asarray(rgba.getchannel("A"))  # [H, W]
    if int(alpha.min()) == 255:
        yield None, rgba.convert("RGB")
        return
    flats = {name: _composite(rgba, name) for name in BACKGROUNDS if every or name == "white"}
    notes.append(_told(alpha, flats))
    yield from flats.items()


def _rgba(image: Image.Image, notes: list[Note]) -> Image.Image:
    """With its colours in sRGB."""
    rgba = image.convert("RGBA")
    profile = image.info.get("icc_profile")
    if profile is None:
        return rgba
    colours = rgba.convert("L" if image.mode == "LA" else "RGB")
    colours.info["icc_profile"] = profile
    found = in_srgb(colours, notes)
    if found is colours:
        return rgba
    found = found.convert("RGB")
    found.putalpha(rgba.getchannel("A"))
    return found


def _composite(rgba: Image.Image, background: Background) -> Image.Image:
    under = Image.new("RGBA", rgba.size, (*BACKGROUNDS[background], 255))
    return Image.alpha_composite(under, rgba).convert("RGB")


def _told(alpha: NDArray[np.uint8], flats: dict[Background, Image.Image]) -> Note:
    drawn = alpha >= _DRAWN_ALPHA
    drawn_count = int(drawn.sum())
    if drawn_count == 0:
        message = "wholly transparent; viewers that ignore transparency show something else"
        return Note("transparent", message, doubtful=True)
    if len(flats) > 1:
        return Note("transparent", "judged over white and over black")
    # White is the highest level, so that one minimum over the channels is the distance to it.
    lost = drawn & (np.asarray(flats["white"]).min(axis=2) > 255 - _NEAR_LEVELS)
    if int(lost.sum()) > _LOST_SHARE * drawn_count:
        message = "judged on white, where much of its light drawing vanishes"
        return Note("transparent", message, doubtful=True)
    return Note("transparent", "judged on a white background")
