"""One Pillow image of any mode -> upright uint8 RGB, and notes on what had to be decided for it.

Takes an opened image; gives [H, W, 3] pixels. Knows nothing of files, limits or errors of decoders.

A note is `doubtful`, and keeps a picture from being called safe, only where a viewer may see
something else than what is judged: further frames or pages, drawing that vanishes on the white
background, a value range that the format does not define, an orientation that cannot be read.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgejudge.errors import InputError
from edgejudge.verdict import Note

__all__ = ["BACKGROUND", "to_rgb"]

BACKGROUND = (255, 255, 255)  # transparent pictures are judged on white
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


def to_rgb(image: Image.Image) -> tuple[NDArray[np.uint8], tuple[Note, ...]]:
    """The pixels to judge, and what a reader of the verdict should know about them."""
    notes = _frame_notes(image)
    image.load()
    turn = None
    try:
        turn = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # EXIF is hostile input too, and its readers raise anything
        message = "its orientation cannot be read; judged as stored"
        notes.append(Note("orientation_unreadable", message, doubtful=True))
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image, notes)
    elif image.mode == "CMYK":
        notes.append(Note("cmyk", "CMYK was converted without its colour profile"))
    if image.has_transparency_data:
        image = _on_background(image, notes)
    if image.mode != "RGB":
        try:
            image = image.convert("RGB")
        except ValueError as error:
            raise InputError(
                "unsupported_pixels", f"pixels of mode {image.mode} are not decoded; use RGB"
            ) from error
    if turn is not None:
        image = image.transpose(turn)
        notes.append(Note("rotated", "turned upright as its EXIF orientation says"))
    return np.asarray(image, dtype=np.uint8), tuple(notes)  # [H, W, 3]


def _frame_notes(image: Image.Image) -> list[Note]:
    # `is_animated` looks one frame ahead; counting all frames of a hostile file could take minutes.
    if not getattr(image, "is_animated", False):
        return []
    if image.format == "MPO":
        message = "the file holds further pictures that viewers do not show; the first is judged"
        return [Note("more_pictures", message)]
    if image.format == "TIFF":
        return [Note("more_pages", "only the first page is judged", doubtful=True)]
    return [Note("animated", "only the first frame is judged", doubtful=True)]


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
    see_through = image.info.get("transparency")
    if isinstance(see_through, int):
        grey.putalpha(Image.fromarray(np.where(values == see_through, 0, 255).astype(np.uint8)))
    return grey


def _on_background(image: Image.Image, notes: list[Note]) -> Image.Image:
    """Composited on BACKGROUND: dropping the alpha channel would show colours nobody sees."""
    if image.mode == "La":  # premultiplied grey, which Pillow turns into RGBA by this way only
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    alpha = np.asarray(rgba.getchannel("A"))  # [H, W]
    if int(alpha.min()) == 255:
        return rgba.convert("RGB")
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba)
    flat = flat.convert("RGB")
    drawn = alpha >= _DRAWN_ALPHA
    # White is the highest level, so that one minimum over the channels is the distance to it.
    lost = drawn & (np.asarray(flat).min(axis=2) > 255 - _NEAR_LEVELS)
    drawn_count = int(drawn.sum())
    if drawn_count == 0:
        message = "wholly transparent; viewers that ignore transparency show something else"
        notes.append(Note("transparent", message, doubtful=True))
    elif int(lost.sum()) > _LOST_SHARE * drawn_count:
        message = "judged on white, where much of its light drawing vanishes"
        notes.append(Note("transparent", message, doubtful=True))
    else:
        notes.append(Note("transparent", "judged on a white background"))
    return flat
