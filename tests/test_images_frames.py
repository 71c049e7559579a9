"""Frames of every kind of file that has several: which are judged, and what is said of the rest."""

import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edgejudge.errors import InputError
from edgejudge.frames import Unlike, chosen, survey
from edgejudge.images import Limits, Picture, decode, decode_all
from made_pictures import encoded, moving, png_chunk

KINDS = ("GIF", "PNG", "WEBP", "TIFF", "AVIF")
SHADES = [(40 * i, 200 - 20 * i, 90) for i in range(6)]


def flat(colours: list[Any], size: tuple[int, int] = (32, 24)) -> list[Image.Image]:
    return [Image.new("RGB", size, colour) for colour in colours]


def doubts(picture: Picture) -> dict[str, bool]:
    return {note.code: note.doubtful for note in picture.notes}


def numbers(picture: Picture) -> list[int | None]:
    return [each.seen_in.frame if each.seen_in else None for each in picture.variants]


def message(picture: Picture, code: str) -> str:
    return next(note.message for note in picture.notes if note.code == code)


def near(a: NDArray[np.uint8], colour: Any) -> bool:
    return float(np.abs(a.astype(int) - np.array(colour)).mean()) < 6


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_of_a_short_file_is_there(kind: str) -> None:
    picture = decode_all(moving(flat(SHADES), kind))
    assert numbers(picture) == [1, 2, 3, 4, 5, 6]
    for each, shade in zip(picture.variants, SHADES, strict=True):
        assert each.rgb.shape == (24, 32, 3) and near(each.rgb, shade)
    code, word = ("more_pages", "pages") if kind == "TIFF" else ("animated", "frames")
    assert doubts(picture) == {code: False}
    assert message(picture, code) == f"{word} 1, 2, 3, 4, 5, 6 of 6 are judged"
    first = decode(moving(flat(SHADES), kind))
    assert near(first.rgb, SHADES[0]) and doubts(first) == {code: True}


@pytest.mark.parametrize("kind", KINDS)
def test_long_files_are_sampled_and_the_rest_compared(kind: str) -> None:
    frames = flat([(90, 90, 90)] * 20)
    for i, frame in enumerate(frames):
        frame.putpixel((i, 0), (120, 90, 90))  # so that none is equal to another
    wanted = [i + 1 for i in chosen(20, 8)]
    assert wanted == [1, 3, 6, 8, 11, 14, 17, 20]
    picture = decode_all(moving(frames, kind))
    assert doubts(picture) == {"more_pages" if kind == "TIFF" else "animated": False}
    assert set(numbers(picture)) <= set(wanted) and len(numbers(picture)) > 4
    frames[4].paste((255, 255, 255), (0, 0, 8, 8))  # which nobody looks at
    picture = decode_all(moving(frames, kind))
    assert doubts(picture)["unseen"] is True
    assert "s 5 look unlike" in message(picture, "unseen")
    assert 5 in numbers(decode_all(moving(frames, kind), Limits(frames=20)))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_equal_frames_are_judged_once(kind: str) -> None:
    frames = flat([(0, 0, 0), (255, 255, 255)] * 3)
    assert numbers(decode_all(moving(frames, kind))) == [1, 2]


def test_pages_of_other_sizes_and_modes() -> None:
    pages = [
        Image.new("RGB", (20, 10), (200, 0, 0)),
        Image.new("L", (5, 40), 77),
        Image.new("CMYK", (8, 8), (255, 0, 0, 0)),
        Image.new("RGBA", (6, 6), (0, 0, 255, 100)),
        Image.fromarray(np.full((3, 4), 65535, np.uint16)),
    ]
    picture = decode_all(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert [each.rgb.shape[:2] for each in picture.variants] == [
        *((10, 20), (40, 5), (8, 8), (6, 6), (6, 6), (3, 4))
    ]
    assert [each.seen_in.to_json() for each in picture.variants if each.seen_in][3:] == [
        {"frame": 4, "background": "white"},
        {"frame": 4, "background": "black"},
        {"frame": 5},
    ]
    assert picture.variants[-1].rgb.min() == 255


def test_further_pictures_of_a_camera_file() -> None:
    data = encoded(flat([(9, 9, 9)])[0], "MPO", save_all=True, append_images=flat([(200, 0, 0)]))
    picture = decode_all(data)
    assert numbers(picture) == [1, 2] and near(picture.variants[1].rgb, (200, 0, 0))
    assert doubts(picture) == {"more_pictures": False}
    # Many programs keep the header and drop the rest, which viewers never show.
    cut = decode_all(data[: data.index(b"\xff\xd9") + 2])
    assert doubts(cut) == {"more_pictures": False, "variant_failed": False}


def icon(pictures: list[Image.Image]) -> bytes:
    """With a PNG of each, whatever their sizes."""
    files = [encoded(each, "PNG") for each in pictures]
    head, body, offset = b"\0\0\1\0" + len(files).to_bytes(2, "little"), b"", 6 + 16 * len(files)
    for each, file in zip(pictures, files, strict=True):
        head += bytes((each.width % 256, each.height % 256, 0, 0, 1, 0, 32, 0))
        head += len(file).to_bytes(4, "little") + (offset + len(body)).to_bytes(4, "little")
        body += file
    return head + body


def test_every_size_of_an_icon() -> None:
    data = icon([Image.new("RGB", (s, s), (s, 0, 0)) for s in (16, 64, 32)])
    picture = decode_all(data)
    assert [each.rgb.shape[0] for each in picture.variants] == [64, 32, 16]
    assert [each.rgb[0, 0, 0] for each in picture.variants] == [64, 32, 16]
    assert decode(data).rgb.shape == (64, 64, 3)
    small = encoded(Image.new("RGBA", (16, 16), (1, 2, 3, 255)), "ICO", bitmap_format="bmp")
    assert decode_all(small).rgb[0, 0].tolist() == [1, 2, 3] and doubts(decode_all(small)) == {}


def test_an_icon_is_measured_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import PngImagePlugin

    def never(self: Any) -> None:
        raise AssertionError("decoded")

    data = icon([Image.new("L", (3000, 2000))])
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", never)
    with pytest.raises(InputError) as caught:
        decode_all(data, Limits(max_pixels=1_000_000))
    assert caught.value.code == "too_many_pixels"


def test_heic() -> None:
    heif = pytest.importorskip("pillow_heif")

    def heic(images: list[Image.Image], primary: int = 0) -> bytes:
        made = heif.HeifFile()
        for image in images:
            made.add_from_pillow(image)
        buffer = io.BytesIO()
        made.save(buffer, quality=95, primary_index=primary)
        return buffer.getvalue()

    frames = flat([(200, 20, 20), (20, 20, 200)], (64, 64))
    assert near(decode(heic(frames[:1])).rgb, (200, 20, 20)) and not decode(heic(frames[:1])).notes
    picture = decode_all(heic(frames, primary=1))
    assert numbers(picture) == [2, 1] and near(picture.rgb, (20, 20, 200))
    with pytest.raises(InputError) as caught:
        decode(heic(frames), Limits(max_pixels=64))
    assert caught.value.code == "too_many_pixels"
    data = heic(frames[:1])
    for cut in (40, len(data) // 2):
        with pytest.raises(InputError) as caught:
            decode(data[:cut])
        assert caught.value.code in ("undecodable", "truncated")


def test_heic_without_its_package_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for brand in (b"heic", b"mif1", b"heix"):
        with pytest.raises(InputError, match=r"pip install 'edgejudge\[heif\]'") as caught:
            decode(b"\0\0\0\x14ftyp" + brand + b"\0\0\0\0heic")
        assert caught.value.code == "unsupported_format"


def test_a_picture_that_a_caller_opened_is_taken_where_it_is() -> None:
    opened = Image.open(io.BytesIO(moving(flat(SHADES), "GIF")))
    opened.seek(2)
    picture = decode_all(opened)
    assert near(picture.rgb, SHADES[2]) and doubts(picture) == {"unseen": True}
    assert opened.tell() == 2 and numbers(picture) == [None]


# --- hostile files --------------------------------------------------------------------------------


def tiny_gif(frames: int) -> bytes:
    """Of one pixel, whose frames take 15 bytes each."""
    data = encoded(Image.new("P", (1, 1)), "GIF")
    return data[:-1] + b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0" * (frames - 1) + b";"


def test_a_million_frames() -> None:
    picture = decode_all(tiny_gif(1_000_000), Limits(max_frames=50))
    assert doubts(picture) == {"animated": False, "unseen": True}
    assert "of more than 50 are judged" in message(picture, "animated")
    assert "behind the first 50" in message(picture, "unseen")
    assert doubts(decode_all(tiny_gif(50), Limits(max_frames=50))) == {"animated": False}


def test_no_more_pixels_than_the_limit_are_gone_through(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import GifImagePlugin

    loads: list[int] = []
    load: Callable[..., Any] = GifImagePlugin.GifImageFile.load_end
    monkeypatch.setattr(
        GifImagePlugin.GifImageFile, "load_end", lambda self: (loads.append(1), load(self))[1]
    )
    frames = flat([(i * 9, 0, 0) for i in range(20)], (100, 100))
    picture = decode_all(moving(frames, "GIF"), Limits(max_frame_pixels=100 * 100 * 5))
    assert numbers(picture) == [1, 2, 3, 4, 5] and len(loads) <= 6
    assert "behind the first 5" in message(picture, "unseen")


def test_a_frame_that_grows_the_canvas_is_measured_first() -> None:
    data = bytearray(moving(flat([(1, 2, 3), (200, 0, 0)]), "GIF"))
    place = data.rindex(b",\0\0\0\0")
    data[place + 5 : place + 9] = b"\xff\xff\xff\xff"  # 65,535 x 65,535 pixels
    picture = decode_all(bytes(data))
    assert numbers(picture) == [1] and doubts(picture)["unseen"] is True
    picture = decode_all(bytes(data), Limits(max_frame_pixels=10**11))
    assert numbers(picture) == [1] and doubts(picture)["unseen"] is True


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP", "AVIF"])
def test_no_part_of_a_file_passes_for_the_whole(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (9, 24, 32, 3), np.uint8)
    data = moving([Image.fromarray(each) for each in noise], kind)
    assert doubts(decode_all(data)).get("variant_failed") is None
    for share in (0.3, 0.5, 0.75, 0.9):
        try:
            picture = decode_all(data[: int(len(data) * share)])
        except InputError as error:
            assert error.code in ("truncated", "undecodable")
        else:
            assert doubts(picture)["variant_failed"] is True


def test_a_page_that_is_damaged_hides_no_other() -> None:
    pages = flat([(1, 2, 3), (200, 0, 0), (0, 200, 0)])
    data = bytearray(moving(pages, "TIFF", compression="tiff_lzw"))
    place = bytes(data).index(encoded(pages[1], "TIFF", compression="tiff_lzw")[8:40])
    data[place : place + 32] = b"\xff" * 32
    picture = decode_all(bytes(data))
    assert numbers(picture) == [1, 3] and near(picture.variants[1].rgb, (0, 200, 0))
    assert "page 2 cannot be judged" in message(picture, "variant_failed")


def test_pages_in_a_circle_end() -> None:
    data = bytearray(moving(flat([(1, 2, 3), (200, 0, 0)]), "TIFF"))
    image = Image.open(io.BytesIO(bytes(data)))
    image.seek(1)
    last = len(data) if image.tag_v2.next else 0  # type: ignore[attr-defined]
    assert last == 0
    first = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[first : first + 2], "little")
    second = first + 2 + 12 * entries
    data[second : second + 4] = first.to_bytes(4, "little")
    assert numbers(decode_all(bytes(data))) in ([None], [1])


def test_frames_that_a_header_does_not_count() -> None:
    data = moving(flat(SHADES), "PNG")
    place = data.index(b"acTL") + 4

    def claiming(count: int) -> bytes:
        chunk = png_chunk(b"acTL", count.to_bytes(4, "big") + data[place + 4 : place + 8])
        return data[: place - 8] + chunk + data[place + 12 :]

    for read in (decode, decode_all):
        still = read(claiming(1))
        assert near(still.rgb, SHADES[0]) and doubts(still) == {"unseen": True}
    picture = decode_all(claiming(2))
    assert numbers(picture) == [1, 2] and doubts(picture) == {"unseen": True, "animated": False}
    picture = decode_all(claiming(2**31))
    assert near(picture.rgb, SHADES[0]) and doubts(picture)["variant_failed"] is True


def test_a_stop_is_heeded_between_frames() -> None:
    calls = iter(range(3))
    with pytest.raises(StopIteration):
        decode_all(moving(flat(SHADES), "GIF"), check=lambda: next(calls) and None)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["GIF", "PNG", "TIFF", "WEBP"]))
def test_damage_is_an_error_or_a_picture_and_nothing_else(data: st.DataObject, kind: str) -> None:
    clean = bytearray(moving(flat(SHADES[:3], (8, 6)), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(clean) - 1))
        clean[place] = data.draw(st.integers(0, 255))
    try:
        picture = decode_all(bytes(clean), Limits(max_pixels=10_000, max_frame_pixels=100_000))
    except InputError:
        return
    assert picture.variants and all(each.rgb.ndim == 3 for each in picture.variants)


# --- the choice -----------------------------------------------------------------------------------


@given(count=st.integers(1, 3000), most=st.integers(1, 40))
def test_the_first_the_middle_and_the_last_are_chosen(count: int, most: int) -> None:
    found = chosen(count, most)
    assert list(found) == sorted(set(found)) and len(found) == min(count, most)
    assert found[0] == 0 and found[-1] < count
    if most >= 3 and count > most:
        assert {0, count // 2, count - 1} <= set(found)
        gaps = np.diff(found)
        assert gaps.max() <= 2 * (count / (most - 2)) + 1
    if count <= most:
        assert found == tuple(range(count))


def test_seven_of_twelve_is_among_them() -> None:
    assert chosen(12, 8) == (0, 1, 3, 4, 6, 7, 9, 11)
    assert chosen(9, 1) == (0,) and chosen(9, 2) == (0, 8) and chosen(9, 3) == (0, 4, 8)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=30),
    frames=st.integers(1, 35),
    pixels=st.integers(1, 20_000),
)
def test_a_survey_keeps_the_limits(sizes: list[tuple[int, int]], frames: int, pixels: int) -> None:
    taken = []
    found = survey((taken.append(1) or size for size in sizes), frames, pixels)
    assert len(taken) <= frames + 1
    assert found.count == min(len(sizes), frames) and found.more == (len(sizes) > frames)
    assert 1 <= found.reach <= found.count
    spent = sum(w * h for w, h in sizes[: found.reach])
    assert found.reach == 1 or spent <= pixels
    if found.reach < found.count:
        assert sum(w * h for w, h in sizes[: found.reach + 1]) > pixels


def test_what_is_unlike() -> None:
    base = np.full((400, 300, 3), 90, np.uint8)
    noise = np.random.default_rng(2).integers(-9, 10, base.shape)
    spot = base.copy()
    spot[200:216, 100:112] = 250
    unlike = Unlike()
    unlike.judged([base])
    unlike.passed(2, [(base + noise).astype(np.uint8)])
    unlike.passed(3, [spot])
    unlike.passed(4, [base[:60]])
    unlike.passed(5, [base, np.zeros_like(base)])
    assert unlike.numbers == [3, 4, 5]
    unlike.judged([spot])
    assert unlike.numbers == [4, 5]
