"""One page of a run: its figures as a table, plots, and the rows that are furthest off.

Takes a results document; gives HTML that needs no network. Every text from outside is escaped: a
label, a file name or a judge's answer may hold anything.
"""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgejudge.evaluation.plots import drawn
from edgejudge.evaluation.terminal import HEADINGS, cells, printable

__all__ = ["page"]

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid #ddd;
  overflow-wrap: anywhere; vertical-align: top; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plots svg { width: 30rem; max-width: 100%; height: auto; }
pre { white-space: pre-wrap; background: #f5f5f5; padding: .7rem; overflow-wrap: anywhere; }
"""
_WORST = ("example", "target", "truth", "prediction", "probabilities", "unscored")


def page(results: Mapping[str, Any]) -> str:
    """The whole document."""
    recipe, counts = results["recipe"], results["counts"]
    title = _safe(f"{recipe['name']}: {recipe['inferencer']} on {recipe['scenario']}")
    figures = [cells(each) for each in results["metrics"]]
    plots = "\n".join(drawn(results["figures"]).values())
    worst = [[_shown(each[key]) for key in _WORST] for each in results["worst"]]
    said = (
        f"{counts['rows']} decisions about {counts['examples']} examples in {counts['groups']} "
        f"groups; {counts['unscored']} unscored, {counts['undecided']} undecided."
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p>{_safe(said)} "Of scored" leaves unscored rows out, "over all" counts them as wrong. Intervals
hold 95 %: exact for shares of independent rows, else by bootstrap over groups.</p>
{_list(results["notes"])}
<h2>Figures</h2>
{_table(HEADINGS, figures)}
<h2>Plots</h2>
<div class="plots">
{plots or "<p>Nothing to draw.</p>"}
</div>
<h2>Furthest off</h2>
{_table(_WORST, worst) if worst else "<p>Every row is right.</p>"}
<h2>What was run</h2>
{_table(("what", "value"), _about(results))}
<details><summary>The recipe</summary>
<pre>{html.escape(json.dumps(recipe["sections"], indent=1, ensure_ascii=False))}</pre></details>
</body>
</html>
"""


def _about(results: Mapping[str, Any]) -> list[list[str]]:
    bundle = results["bundle"]
    rows = {
        "bundle": None if bundle is None else f"{bundle['name']} {bundle['sha256']}",
        "policy sha256": results["policy_sha256"],
        "calibration": results["calibration"],
        "recipe sha256": results["recipe"]["sha256"],
        "data sha256": results["data_sha256"],
        "outputs sha256": results["outputs_sha256"],
        **results["versions"],
    }
    return [[name, str(value)] for name, value in rows.items() if value is not None]


def _list(texts: Sequence[str]) -> str:
    items = "".join(f"<li>{_safe(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_safe(each)}</th>" for each in headings)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number:.3f}" for key, number in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _safe(text: str) -> str:
    """As text of a page, and without characters that no page may hold."""
    return html.escape(printable(text))
