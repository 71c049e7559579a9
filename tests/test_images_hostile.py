"""What is refused, with a code and a sentence: files that are none, and that nobody may read."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgejudge.errors import InputError
from edgejudge.images import CODES, ImageInput, Limits, decode_all, read_bytes
from made_pictures import encoded

WHOLE = encoded(Image.new("RGB", (30, 20), (200, 0, 0)), "PNG")


def refused(image: ImageInput, limits: Limits | None = None) -> tuple[str, str]:
    with pytest.raises(InputError) as caught:
        decode_all(image, limits or Limits())
    sentence = str(caught.value)
    assert caught.value.code in CODES and sentence and "\n" not in sentence
    return caught.value.code, sentence


def test_special_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe")[0] == "not_a_file"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))  # a path of its own has few characters
        assert refused(tmp_path / "socket")[0] == "not_a_file"
    for device in ("/dev/zero", "/dev/null"):
        if os.path.exists(device):
            assert refused(device)[0] == "not_a_file"
    assert refused(tmp_path)[0] == "not_a_file"


def test_links_that_lead_nowhere_or_in_circles(tmp_path: Path) -> None:
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert refused(tmp_path / "lost")[0] == "missing"
    code, sentence = refused(tmp_path / "a")
    assert code == "missing" and "symbolic links" in sentence
    (tmp_path / "file.png").write_bytes(WHOLE)
    (tmp_path / "link").symlink_to("file.png")
    assert decode_all(tmp_path / "link").rgb.shape == (20, 30, 3)


def test_a_file_that_nobody_may_read() -> None:
    script = """if True:
        import os, sys
        from edgejudge.errors import InputError
        from edgejudge.images import decode_all
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            decode_all(sys.argv[1])
        except InputError as error:
            print(error.code, error)
    """
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "secret.png")
        path.write_bytes(WHOLE)
        path.chmod(0)
        command = [sys.executable, "-c", script, str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "unreadable cannot be read: Permission denied\n", done.stderr


def test_names_that_are_no_text(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    with open(raw, "wb") as file:
        file.write(WHOLE)
    assert read_bytes(os.fsdecode(raw)) == WHOLE
    assert refused(str(tmp_path / ("x" * 300)))[0] == "unreadable"


def test_bytes_are_counted_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(WHOLE)
    small = Limits(max_bytes=len(WHOLE) - 1)
    assert refused(path, small)[0] == refused(WHOLE, small)[0] == "too_many_bytes"
    assert decode_all(path, Limits(max_bytes=len(WHOLE))).rgb.shape == (20, 30, 3)
    path.write_bytes(b"")
    assert refused(path)[0] == refused(b"")[0] == "empty"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000"])
def test_pixels_are_counted_before_they_are_decoded(kind: str) -> None:
    data = encoded(Image.new("RGB", (300, 200)), kind)
    assert refused(data, Limits(max_pixels=59_999))[0] == "too_many_pixels"
    assert refused(data, Limits(max_side=299))[0] == "too_many_pixels"
    assert decode_all(data, Limits(max_pixels=60_000, max_side=300)).rgb.shape == (200, 300, 3)
    code, _ = refused(data[: len(data) // 2])
    assert code in ("truncated", "undecodable")


def test_limits_that_make_no_sense() -> None:
    for wrong in ({"frames": 0}, {"max_frames": 0}):
        with pytest.raises(ValueError, match="at least 1 frame"):
            Limits(**wrong)


def test_arrays_and_images_have_backgrounds_too() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4] = (0, 0, 0, 255)
    for image in (rgba, Image.fromarray(rgba), encoded(Image.fromarray(rgba), "PNG")):
        found = decode_all(image)
        assert [each.seen_in.to_json() for each in found.variants if each.seen_in] == [
            {"background": "white"},
            {"background": "black"},
        ]
        white, black = (each.rgb for each in found.variants)
        assert white[0, 0, 0] == 0 and white[7, 0, 0] == 255 and black.max() == 0
        assert [(note.code, note.doubtful) for note in found.notes] == [("transparent", False)]


def test_wholly_transparent_ones_stay_doubtful() -> None:
    hidden = Image.new("RGBA", (8, 8), (200, 0, 0, 10))
    assert [(n.code, n.doubtful) for n in decode_all(hidden).notes] == [("transparent", True)]


def test_an_opaque_still_has_one_variant_and_no_news() -> None:
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "AVIF"):
        found = decode_all(encoded(Image.new("RGB", (9, 7), (1, 2, 3)), kind))
        assert len(found.variants) == 1 and found.variants[0].seen_in is None
        assert found.notes == ()
    alpha = encoded(Image.new("RGBA", (9, 7), (1, 2, 3, 255)), "PNG")
    assert len(decode_all(alpha).variants) == 1 and decode_all(alpha).notes == ()
