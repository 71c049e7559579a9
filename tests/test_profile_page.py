"""The page of a profile: whole, safe against names of strangers, and shown by a real browser."""

import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tiny
from edgejudge.fidelity import export_bundle
from edgejudge.profiling import Distribution, Profile, profile
from edgejudge.profiling.charts import bars, histogram, roofline, timeline, waterfall
from edgejudge.profiling.page import page
from edgejudge.profiling.records import compared
from edgejudge.tracing import Tracing

CHROMIUM = shutil.which("chromium")
TIMES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=50)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Profile, Tracing]:
    root = tmp_path_factory.mktemp("page")
    checkpoint = tiny.make_checkpoint(root / "checkpoint", card=tiny.make_card())
    export_bundle(checkpoint, root / "bundle", "exact")
    return profile(str(root / "bundle"), "screen:images=2", runs=6, operators=True)


class Balanced(html.parser.HTMLParser):
    """Every element that is opened is closed, in order."""

    EMPTY = frozenset({"meta", "link", "path", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(text: str) -> Balanced:
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_a_page_has_every_part(profiled: tuple[Profile, Tracing], tmp_path: Path) -> None:
    record, seen = profiled
    old = tmp_path / "old.json"
    old.write_text(json.dumps(record.to_json()), encoding="utf-8")
    text = page(record, seen, compared(record, old, 0.05))
    found = checked(text)
    assert {"svg", "table", "dl"} <= found.seen and "script" not in found.seen
    for title in ("spread", "device by device", "Run after run", "older record", "Memory"):
        assert title in text
    assert f"{record.run.p50:,.1f} ms" in text and "MatMul" in text
    assert not re.search(r"(?:src|href)=\"(?!data:,)", text), "it asks for nothing"
    assert len(re.findall(r"<svg ", text)) >= 5


def test_names_of_strangers_are_words(profiled: tuple[Profile, Tracing]) -> None:
    record, seen = profiled
    evil = "<script>alert(1)</script>\x1b[31m\"'&"
    text = page(
        replace(record, bundle=evil, warnings=(evil,), placement={evil: evil}, policy=evil), seen
    )
    assert "script" not in checked(text).seen and "\x1b" not in text


@given(TIMES)
def test_charts_are_whole_for_any_numbers(values: list[float]) -> None:
    found = Distribution.of(values)
    marks = {"p50": found.p50, "p99": found.p99}
    points = [(float(i), v) for i, v in enumerate(values)]
    rows = {"cpu": [("a", float(i), v, "said") for i, v in enumerate(values)]}
    named = {str(i): v for i, v in enumerate(values)}
    roof = roofline(found.max + 1e-3, found.p50 + 1e-3, {"a": (found.min + 1e-3, found.max + 1.0)})
    charts = (histogram(values, marks), timeline(points), waterfall(rows), bars(named, "ms"), roof)
    for text in charts:
        checked(text)
        assert "nan" not in text and "inf" not in text
        for number in re.findall(r' (?:x|y|width|height)="([^"]*)"', text):
            assert float(number) >= 0


def test_long_traces_stay_small() -> None:
    rows = {"cpu": [("a", float(i), 0.5, "said") for i in range(20_000)]}
    assert len(waterfall(rows)) < 600_000
    assert len(timeline([(float(i), 1.0) for i in range(50_000)])) < 400_000


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: make providers-apt")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_a_complaint(
    profiled: tuple[Profile, Tracing], tmp_path: Path, width: int
) -> None:
    file = tmp_path / "page.html"
    file.write_text(page(*profiled), encoding="utf-8")
    picture = tmp_path / "page.png"
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"),
            *(f"--window-size={width},2400", f"--screenshot={picture}", file.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    with Image.open(picture) as shown:
        assert shown.width == width
        colours = shown.convert("RGB").getcolors(1 << 24)
        assert colours is not None and len(colours) > 50, "there is something to see"
