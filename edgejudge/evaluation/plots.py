"""Plots of a run as SVG text: reliability, risk against coverage, confusion.

Takes the figures of a results document; gives SVG elements that need nothing outside them. Knows no
rows and no page.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgejudge.evaluation.extra import needed
from edgejudge.evaluation.terminal import printable

__all__ = ["drawn"]

_SIZE = (4.6, 3.6)  # inches
_INK, _GREY, _BLUE = "#222222", "#999999", "#2563a8"


def drawn(figures: Mapping[str, Any]) -> dict[str, str]:
    """Name of each figure -> an svg element."""
    return {
        name: _svg(name, draw, figures[name]) for name, draw in _PLOTS.items() if name in figures
    }


def _svg(name: str, draw: Callable[[Any, Any], None], value: Any) -> str:
    matplotlib = needed("matplotlib")
    # Not pyplot, which keeps every figure and may look for a screen. Text stays text: it can be
    # searched, and is set in a font that is there.
    figure = needed("matplotlib.figure").Figure(figsize=_SIZE, layout="constrained")
    style = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font for measuring has no glyph of
        draw(figure.subplots(), value)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Ids are of a document, and there are several of these in one page.
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'((?:xlink:)?href=")#', rf"\1#{name}-", text)
    return re.sub(r"url\(#", f"url(#{name}-", text)


def _reliability(axes: Any, value: Any) -> None:
    bins = value["bins"]
    p, share = [each["probability"] for each in bins], [each["share"] for each in bins]
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--")
    axes.plot(p, share, color=_BLUE, marker="o", markersize=4)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=f"mean probability: {value['of']}")
    axes.set_ylabel("share that is so")
    axes.set_title("Reliability, bins of equal mass", loc="left", color=_INK)


def _risk_coverage(axes: Any, value: Any) -> None:
    axes.plot(value["coverage"], value["risk"], color=_BLUE)
    axes.set(xlim=(0, 1), xlabel="share of all rows that is answered", ylabel="share of errors")
    axes.set_ylim(0, max([0.05, *value["risk"]]) * 1.05)
    axes.set_title(f"Risk against coverage, area {value['area']:.4f}", loc="left", color=_INK)


def _confusion(axes: Any, value: Any) -> None:
    counts = np.array(value["counts"], np.float64).reshape(len(value["truth"]), -1)
    rows = counts.sum(axis=1, keepdims=True)
    shares = counts / np.where(rows == 0, 1, rows)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(value["said"])), [_plain(each) for each in value["said"]])
    axes.set_yticks(range(len(value["truth"])), [_plain(each) for each in value["truth"]])
    if counts.size <= 100:
        for (i, j), count in np.ndenumerate(counts):
            ink = "white" if shares[i, j] > 0.5 else _INK
            axes.text(j, i, f"{count:g}", ha="center", va="center", color=ink)
    axes.tick_params(axis="x", labelrotation=30 if len(value["said"]) > 4 else 0)
    axes.set(xlabel="said", ylabel="true")
    axes.set_title("Confusion, shaded by row", loc="left", color=_INK)


def _plain(text: Any) -> str:
    """A label as it is: dollar signs would begin a formula."""
    return printable(str(text)[:24]).replace("$", r"\$")


_PLOTS: dict[str, Callable[[Any, Any], None]] = {
    "reliability": _reliability,
    "risk_coverage": _risk_coverage,
    "confusion": _confusion,
}
