"""A copy of a picture that shows its colours and no more.

Takes the bytes of a picture; gives those of a PNG. It is drawn from at most 12 cells a side, each
the mean of 8 pixels or more along it: nothing finer is in the file, and no filter brings it back.
And from pixels alone: no EXIF, no thumbnail and no further frame comes along.
"""

from io import BytesIO

from edgejudge.images import Limits, decode

__all__ = ["blurred"]

_CELLS = 12  # of the longer side
_PIXELS = 8  # of a cell's side, at least
_SIDE = 384  # of the longer side of the copy


def blurred(data: bytes, limits: Limits) -> bytes:
    """Of the first frame, upright, on white. Raises InputError for what is no picture."""
    from PIL import Image

    picture = Image.fromarray(decode(data, limits).rgb)
    longer = max(picture.size)
    cells = min(_CELLS, max(1, longer // _PIXELS))
    small = picture.resize(_scaled(picture.size, cells), Image.Resampling.BOX)
    drawn = small.resize(_scaled(picture.size, min(longer, _SIDE)), Image.Resampling.BICUBIC)
    stream = BytesIO()
    drawn.save(stream, "PNG")
    return stream.getvalue()


def _scaled(size: tuple[int, int], longer: int) -> tuple[int, int]:
    width, height = (max(1, side * longer // max(size)) for side in size)
    return width, height
