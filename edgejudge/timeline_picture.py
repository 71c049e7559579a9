"""A predicted timeline as a picture: one row a device, one box a task.

Takes the document of a plan; gives SVG that needs no network, dark where its reader is. Every name
in it may come from a stranger's file and is escaped.
"""

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

from edgejudge.printable import brief

__all__ = ["timeline_svg"]

_WIDTH, _LEFT, _ROW, _TOP = 1000, 150, 34, 64
_TICKS = 8
_HUES = (
    *("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2"),
    *("#d4a72c", "#9d755d", "#7a8fd4", "#5fb0a0", "#c06090", "#88a040"),
)
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #222 }
.title { font-size: 15px } .axis { stroke: #bbb } .back { fill: #fff }
rect.u { stroke: #fff; stroke-width: .5 }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .axis { stroke: #555 } .back { fill: #181818 } rect.u { stroke: #181818 }
}
"""


def timeline_svg(plan: Mapping[str, Any]) -> str:
    """The whole document."""
    units, devices = list(plan["placement"]), list(plan["busy_ms"])
    whole = plan["makespan_ms"] or 1.0
    scale = (_WIDTH - _LEFT - 20) / whole
    bottom = _TOP + _ROW * len(devices)
    height = bottom + 40 + 18 * -(-len(units) // 6)
    title = f"{plan['workload']}: {plan['makespan_ms']:.1f} ms, for {plan['objective']}"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{_safe(title)}</title><style>{_STYLE}{_colours()}</style>",
        f'<rect class="back" width="{_WIDTH}" height="{height}"/>',
        f'<text class="title" x="16" y="24">{_safe(plan["bundle"])}</text>',
        f'<text x="16" y="44">{_safe(title)}</text>',
    ]
    for tick in range(_TICKS + 1):
        ms = whole * tick / _TICKS
        x = _LEFT + ms * scale
        out.append(f'<path class="axis" d="M{x:.1f} {_TOP - 6}V{bottom}"/>')
        out.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{ms:.0f}</text>')
    for row, device in enumerate(devices):
        y = _TOP + row * _ROW
        busy = 100 * plan["busy_ms"][device] / whole
        out.append(f'<text x="16" y="{y + 18}">{_safe(device, 14)} {busy:.0f} %</text>')
    for run in plan["timeline"]:
        x = _LEFT + run["begin_ms"] * scale
        wide = max((run["end_ms"] - run["begin_ms"]) * scale, 0.4)
        y = _TOP + devices.index(run["device"]) * _ROW
        says = f"request {run['request']}, {run['task']}: {run['begin_ms']:.1f} to "
        says += f"{run['end_ms']:.1f} ms"
        out.append(
            f'<rect class="u u{units.index(run["unit"]) % len(_HUES)}" x="{x:.2f}" y="{y}" '
            f'width="{wide:.2f}" height="{_ROW - 8}"><title>{_safe(says, 160)}</title></rect>'
        )
    for place, unit in enumerate(units):
        x, y = 16 + 160 * (place % 6), bottom + 30 + 18 * (place // 6)
        out.append(
            f'<rect class="u u{place % len(_HUES)}" x="{x}" y="{y}" width="12" height="12"/>'
        )
        out.append(f'<text x="{x + 18}" y="{y + 11}">{_safe(unit, 20)}</text>')
    return "\n".join([*out, "</svg>", ""])


def _colours() -> str:
    return "".join(f".u{i} {{ fill: {hue} }}\n" for i, hue in enumerate(_HUES))


def _safe(text: str, most: int = 120) -> str:
    return escape(brief(text, most))
