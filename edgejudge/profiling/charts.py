"""Charts of a profile as SVG: how runs are spread, how they went over time, who did what when.

Takes numbers and spans; gives SVG elements for a page, sized by it, coloured by its variables.
Every name may come from a stranger's file and is escaped. Knows no record.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

from edgejudge.printable import brief

__all__ = ["bars", "histogram", "roofline", "timeline", "waterfall"]

_WIDTH = 720
_LEFT, _RIGHT = 120, 16
_ROW = 22
_BINS = 24
_MOST_POINTS = 600  # of a timeline: more are drawn one on top of another
_MOST_SPANS = 2000


def histogram(values: Sequence[float], marks: Mapping[str, float], unit: str = "ms") -> str:
    """Runs by how long they took, with named lines."""
    low, high = min([*values, *marks.values()]), max([*values, *marks.values()])
    wide = (high - low) or max(high, 1e-3) * 0.01
    counts = [0] * _BINS
    for value in values:
        counts[min(_BINS - 1, int(_BINS * (value - low) / wide))] += 1
    height, top, most = 180, 34, max(counts)
    across = (_WIDTH - 2 * _RIGHT) / _BINS
    parts = []
    for number, count in enumerate(counts):
        tall = (height - top - 24) * count / most
        left = _RIGHT + number * across
        begin, end = low + wide * number / _BINS, low + wide * (number + 1) / _BINS
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{height - 24 - tall:.1f}" '
            f'width="{across - 1:.1f}" height="{tall:.1f}">'
            f"<title>{count} runs from {begin:.2f} to {end:.2f} {unit}</title></rect>"
        )
    for number, (name, value) in enumerate(sorted(marks.items(), key=lambda m: m[1])):
        x = _RIGHT + (_WIDTH - 2 * _RIGHT) * (value - low) / wide
        y = 12 + 11 * (number % 2)
        parts.append(f'<path class="mark" d="M{x:.1f} {top}V{height - 24}"/>')
        anchor = "end" if x > 0.9 * _WIDTH else "start" if x < 0.1 * _WIDTH else "middle"
        parts.append(_text(x, y, f"{name} {_short(value)}", anchor))
    parts += _axis(low, low + wide, _RIGHT, height, unit)
    return _svg(height, f"{len(values)} runs, {low:.2f} to {high:.2f} {unit}", parts)


def timeline(points: Sequence[tuple[float, float]], unit: str = "ms") -> str:
    """What each run took, over the seconds since the first began, and the median of those about
    it.
    """
    step = max(1, math.ceil(len(points) / _MOST_POINTS))
    shown = list(points[::step])
    end, most = max(points[-1][0], 1e-6), max(ms for _, ms in points) * 1.05
    height, top = 180, 10
    floor = height - 24

    def place(at: float, ms: float) -> tuple[float, float]:
        x = _LEFT / 2 + (_WIDTH - _LEFT / 2 - _RIGHT) * at / end
        return x, floor - (floor - top) * ms / most

    parts = [
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.2"><title>{at:.1f} s: {ms:.2f} {unit}'
        "</title></circle>"
        for at, ms in shown
        for x, y in [place(at, ms)]
    ]
    near = max(2, len(points) // 20)
    line = []
    for number in range(0, len(points), max(1, near // 2)):
        about = sorted(ms for _, ms in points[max(0, number - near) : number + near + 1])
        x, y = place(points[number][0], about[len(about) // 2])
        line.append(f"{x:.1f} {y:.1f}")
    if len(line) > 1:
        parts.append(f'<path class="line" d="M{" L".join(line)}"/>')
    parts += [_text(4, place(0, v)[1] + 4, _short(v), "start") for v in (0, most / 2, most / 1.05)]
    parts += _axis(0, end, _LEFT / 2, height, "s")
    return _svg(height, f"{len(points)} runs over {end:.1f} s", parts)


def waterfall(rows: Mapping[str, Sequence[tuple[str, float, float, str]]]) -> str:
    """Spans (name, start and length in ms, what to say of it) by row; a row is a device."""
    spans = [span for own in rows.values() for span in own]
    begin = min(start for _, start, _, _ in spans)
    end = max(start + ms for _, start, ms, _ in spans)
    scale = (_WIDTH - _LEFT - _RIGHT) / ((end - begin) or 1.0)
    parts, hues = list[str](), dict[str, int]()
    lane, top = 0, 8
    drawn = 0
    for name, own in rows.items():
        open_until: list[float] = []
        deepest = 0
        for what, start, ms, said in sorted(own, key=lambda s: (s[1], -s[2])):
            while open_until and open_until[-1] <= start + 1e-6:
                open_until.pop()
            open_until.append(start + ms)
            deepest = max(deepest, len(open_until))
            if (drawn := drawn + 1) > _MOST_SPANS:
                continue
            hue = hues.setdefault(what, len(hues)) % 8
            x, y = _LEFT + (start - begin) * scale, top + (lane + len(open_until) - 1) * _ROW
            wide = max(ms * scale, 0.6)
            parts.append(
                f'<rect class="h{hue}" x="{x:.1f}" y="{y}" width="{wide:.1f}" '
                f'height="{_ROW - 3}" rx="2"><title>{_safe(said)}</title></rect>'
            )
            if wide > 7 * len(what) + 6:
                parts.append(_text(x + 4, y + 14, what, "start", "in"))
        parts.append(_text(4, top + lane * _ROW + 14, brief(name, 18), "start"))
        lane += deepest
        y = top + lane * _ROW - 1
        parts.append(f'<path class="rule" d="M0 {y}H{_WIDTH}"/>')
    height = top + lane * _ROW + 28
    parts += _axis(0, end - begin, _LEFT, height, "ms")
    return _svg(height, f"{len(spans)} spans in {end - begin:.1f} ms", parts)


def bars(values: Mapping[str, float], unit: str, whole: float = 0.0) -> str:
    """One bar each, as long as its value; the longest, or `whole`, is as wide as there is room."""
    most = max([*values.values(), whole, 1e-9])
    parts = []
    for number, (name, value) in enumerate(values.items()):
        y = 6 + number * _ROW
        wide = (_WIDTH - _LEFT - 110) * value / most
        parts.append(_text(4, y + 14, brief(name, 18), "start"))
        parts.append(
            f'<rect class="bar" x="{_LEFT}" y="{y}" width="{wide:.1f}" height="{_ROW - 5}"/>'
        )
        parts.append(_text(_LEFT + wide + 6, y + 14, f"{_short(value)} {unit}", "start"))
    return _svg(8 + _ROW * len(values), f"{len(values)} bars in {unit}", parts)


def roofline(gflops: float, read_gb_s: float, points: Mapping[str, tuple[float, float]]) -> str:
    """What a machine can do at most by operations a byte, both on scales of powers of ten, and
    what was done (Williams, Waterman and Patterson, Communications of the ACM 52(4), 2009).
    """
    ridge = gflops / read_gb_s
    across = [ridge / 30, ridge * 30, *(x for x, _ in points.values())]
    up = [gflops * 2, gflops / 200, *(y for _, y in points.values())]
    left, right = (math.log10(f(across)) for f in (min, max))
    low, high = (math.log10(f(up)) for f in (min, max))
    height, floor = 230, 196

    def place(x: float, y: float) -> tuple[float, float]:
        wide, tall = (right - left) or 1.0, (high - low) or 1.0
        return (
            _LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log10(x) - left) / wide,
            floor - (floor - 12) * (math.log10(y) - low) / tall,
        )

    begin = max(10**left, 10**low / read_gb_s)
    (x0, y0), (x1, y1) = place(begin, begin * read_gb_s), place(ridge, gflops)
    x2, _ = place(10**right, gflops)
    parts = [f'<path class="line" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}H{x2:.1f}"/>']
    parts.append(_text(x2, y1 - 6, f"{_short(gflops)} GFLOP/s", "end"))
    parts.append(_text(x0 + 6, y0 - 12, f"{_short(read_gb_s)} GB/s", "start"))
    for name, (x, y) in points.items():
        px, py = place(x, y)
        said = f"{name}: {_short(y)} GFLOP/s at {_short(x)} operations a byte"
        parts.append(f'<circle class="bar" cx="{px:.1f}" cy="{py:.1f}" r="5">')
        parts.append(f"<title>{_safe(said)}</title></circle>")
        anchor = "end" if px > 0.8 * _WIDTH else "start"
        parts.append(_text(px + (-9 if anchor == "end" else 9), py + 4, name, anchor))
    for number in range(math.ceil(left), math.floor(right) + 1):
        x, _ = place(10.0**number, gflops)
        parts.append(_text(x, height - 6, _short(10.0**number), "middle"))
    parts.append(f'<path class="rule" d="M{_LEFT} {floor + 4}H{_WIDTH - _RIGHT}"/>')
    parts.append(_text(_WIDTH - _RIGHT, height - 24, "operations a byte", "end"))
    return _svg(height, f"at most {_short(gflops)} GFLOP/s and {_short(read_gb_s)} GB/s", parts)


def _axis(low: float, high: float, left: float, height: float, unit: str) -> list[str]:
    parts = [f'<path class="rule" d="M{left} {height - 22}H{_WIDTH - _RIGHT}"/>']
    for tick in range(5):
        x = left + (_WIDTH - _RIGHT - left) * tick / 4
        anchor = ("start", "middle", "middle", "middle", "end")[tick]
        value = _short(low + (high - low) * tick / 4) + (f" {unit}" if tick == 4 else "")
        parts.append(_text(x, height - 6, value, anchor))
    return parts


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_safe(text)}</text>'
    )


def _svg(height: float, said: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{_safe(said)}">'
        f"{''.join(parts)}</svg>"
    )


def _short(value: float) -> str:
    return (
        f"{value:,.0f}"
        if abs(value) >= 100
        else f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.2f}"
    )


def _safe(text: str) -> str:
    return escape(brief(text, 200), quote=True)
