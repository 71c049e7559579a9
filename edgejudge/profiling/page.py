"""A profile as one HTML file: the headline, its spread, who did what when, memory, what changed.

Takes a record and what its last run did; gives a page that needs no network and no script, for
phones and screens, light and dark. Measures nothing.
"""

from collections.abc import Iterable, Sequence
from html import escape

from edgejudge.printable import printable
from edgejudge.profiling.charts import bars, histogram, roofline, timeline, waterfall
from edgejudge.profiling.limits import Limits
from edgejudge.profiling.records import Compared, Profile
from edgejudge.tracing import Tracing

__all__ = ["page"]

_STYLE = """
:root { --back: #fff; --text: #1d2129; --soft: #667085; --rule: #d9dde3; --bar: #4c78a8;
  --card: #f6f7f9; --warn: #8a5a00; --warnback: #fff4d6 }
@media (prefers-color-scheme: dark) { :root { --back: #14171c; --text: #e6e8eb; --soft: #9aa4b2;
  --rule: #343a44; --bar: #6f9fd8; --card: #1c2027; --warn: #ffd479; --warnback: #3a2f14 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 16px/1.45 system-ui, sans-serif }
h1 { font-size: 1.15rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem }
p { margin: .3rem 0 } .soft { color: var(--soft) } small { color: var(--soft) }
.head { font-size: clamp(2rem, 9vw, 3.4rem); font-weight: 650; line-height: 1.1;
  margin: .4rem 0 0 }
.warn { background: var(--warnback); color: var(--warn); border-radius: .4rem;
  padding: .5rem .8rem; margin: .5rem 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem .25rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule) }
th:first-child, td:first-child { text-align: left } td.in { padding-left: 1rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0 }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
svg { width: 100%; min-width: 34rem; height: auto; display: block; background: var(--card);
  border-radius: .4rem }
svg text { font: 12px system-ui, sans-serif; fill: var(--text) } svg text.in { fill: #fff }
.bar, .dot { fill: var(--bar) } .dot { opacity: .6 }
.line { fill: none; stroke: #e45756; stroke-width: 2 }
.mark { stroke: #e45756; stroke-width: 1.5 } .rule { stroke: var(--rule) }
.h0 { fill: #4c78a8 } .h1 { fill: #b8621b } .h2 { fill: #3f7d38 } .h3 { fill: #b83b3a }
.h4 { fill: #3d8680 } .h5 { fill: #8b5583 } .h6 { fill: #8d6d12 } .h7 { fill: #7d5a49 }
@media (max-width: 36rem) {
  dl { grid-template-columns: 1fr } dt { margin-top: .3rem }
}
"""


def page(record: Profile, seen: Tracing, against: Compared | None = None) -> str:
    """The whole document."""
    run = record.run
    low, high = run.intervals.get("p50", (run.p50, run.p50))
    title = f"{record.bundle} ({record.recipe}): {record.of}"
    rates = " · ".join(f"{r.p50:,.1f} {name} a second" for name, r in record.rates.items())
    parts = [
        f"<h1>{_safe(title)}</h1>",
        f'<p class="head">{run.p50:,.1f} ms</p>',
        f'<p class="soft">median of {run.n} warm runs, 95 % interval {low:,.1f} to {high:,.1f}; '
        f"90 of 100 within {run.p90:,.1f}, 99 within {run.p99:,.1f} ms</p>",
        f"<p>{_safe(rates)}</p>" if rates else "",
        *(f'<p class="warn">{_safe(text)}</p>' for text in record.warnings),
    ]
    if record.stopped:
        parts.append('<p class="warn">stopped by Ctrl-C: these are the runs until then</p>')
    marks = {"p50": run.p50, "p90": run.p90, "p99": run.p99}
    parts += _section("How runs are spread", histogram(run.values, marks))
    if seen.spans:
        parts += _section("The last run, device by device", waterfall(_rows(seen)))
    if len(record.timeline) > 1:
        parts += _section("Run after run", timeline(record.timeline))
    parts += _section("Figures", _figures(record))
    if against is not None:
        parts += _section("Against the older record", _against(against))
    if record.operators:
        parts += _section("Operators of one run", _operators(record))
    parts += _limits(record)
    parts += _section("Memory", bars(record.memory.resident | {"peak": record.memory.peak}, "MiB"))
    parts += [
        f'<p class="soft">{_safe(_held(record))}</p>',
        _wide(bars(record.memory.stages, "MiB")),
    ]
    parts += _section("Where and how", _card(record))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{_safe(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _section(title: str, *parts: str) -> list[str]:
    return [f"<h2>{_safe(title)}</h2>", *(_wide(part) for part in parts)]


def _wide(part: str) -> str:
    """What may be wider than a phone is moved sideways within its own frame."""
    return f'<div class="wide">{part}</div>' if part.startswith("<svg") else part


def _rows(seen: Tracing) -> dict[str, list[tuple[str, float, float, str]]]:
    """Devices first, then the host; what no device does stands there."""
    rows: dict[str, list[tuple[str, float, float, str]]] = {}
    for span in seen:
        row = (
            span.device
            if len(seen.requests) < 2 or span.device != "host"
            else (f"host, request {span.request + 1}")
        )
        counts = ", ".join(f"{name} {n}" for name, n in span.counts.items())
        said = f"{span.name}: {span.ms:.2f} ms from {span.start_ms:.2f}" + (
            f" ({counts})" if counts else ""
        )
        rows.setdefault(row, []).append((span.name, span.start_ms, span.ms, said))
    return dict(sorted(rows.items(), key=lambda row: (row[0].startswith("host"), row[0])))


def _figures(record: Profile) -> str:
    rows = []
    for name, found in record.figures().items():
        low, high = found.intervals.get("p50", (found.p50, found.p50))
        cells = (found.p50, low, high, found.p90, found.p95, found.p99, found.min, found.max)
        rows.append((name, str(found.n), *(f"{v:,.2f}" for v in cells)))
    heads = ("ms", "n", "p50", "95 %", "to", "p90", "p95", "p99", "min", "max")
    return _table(heads, rows)


def _against(against: Compared) -> str:
    rows = [
        (name, f"{r.value:.3f}", "" if r.low is None else f"{r.low:.3f} to {r.high:.3f}")
        for name, r in against.ratios.items()
    ]
    told = [f'<p class="warn">slower: {_safe(name)}</p>' for name in against.slower]
    if against.differs:
        told.append(
            f'<p class="warn">not the same in both: {_safe(", ".join(against.differs))}</p>'
        )
    return _table(("", "new / old", "95 %"), rows) + "".join(told)


def _operators(record: Profile) -> str:
    rows = [
        (f"{r.operator} on {r.provider}", str(r.runs), f"{r.ms:,.2f}", f"{r.share:.1%}")
        for r in record.operators
    ]
    return _table(("operator", "runs", "ms", "share"), rows)


def _limits(record: Profile) -> list[str]:
    limits = record.limits
    if limits is None:
        return []
    shares = {
        "prompts": limits.prompt_share,
        "writing": limits.written_share,
    }
    known = {name: 100 * share for name, share in shares.items() if share is not None}
    said = (
        f"numpy multiplies {limits.gflops:,.0f} GFLOP/s in float32 and reads "
        f"{limits.read_gb_s:,.1f} GB/s here. A token of a prompt takes "
        f"{limits.operations / 1e6:,.1f} million operations; writing one reads "
        f"{limits.token_mb:,.1f} MB of weights. Integer kernels may exceed the first."
    )
    return _section(
        "Of what the machine can do",
        roofline(*_roof(record, limits)),
        bars(known, "%", 100.0),
        f'<p class="soft">{_safe(said)}</p>',
    )


def _roof(record: Profile, limits: Limits) -> tuple[float, float, dict[str, tuple[float, float]]]:
    """Peaks, and of prompts and writing: operations a byte of weights, operations a second."""
    each = limits.operations / (limits.token_mb * 1e6)
    points = {}
    for name, rate, tokens in (
        ("prompts", "prompt tokens", limits.pass_tokens),
        ("writing", "written tokens", 1.0),
    ):
        if rate in record.rates:
            points[name] = each * tokens, record.rates[rate].p50 * limits.operations / 1e9
    return limits.gflops, limits.read_gb_s, points


def _held(record: Profile) -> str:
    kv = record.memory.kv
    held = "" if kv is None else f"Keys and values take {kv:.1f} MiB. "
    return f"{held}Files of each stage's graphs on the processor:"


def _card(record: Profile) -> str:
    watts = ", ".join(f"{name} {w:.1f} W" for name, w in record.watts.items()) or "no counter here"
    others = "unknown" if record.others is None else f"{record.others:.0%} of the cores"
    facts = {
        **{name: str(value) for name, value in record.machine.items()},
        "others meanwhile": others,
        "this process": f"{record.cpu_cores:.2f} cores",
        "power": watts,
        "load before, after": f"{record.before.load}, {record.after.load}",
        "placement": ", ".join(f"{k} on {v}" for k, v in record.placement.items()),
        "settings": ", ".join(f"{k} {v}" for k, v in record.settings.items()),
        "workload": record.workload,
        "policy, picture": f"{record.policy}, {record.picture}",
        "first answer": f"{record.first_verdict_ms:,.0f} ms, {record.load_ms:,.0f} to load and "
        f"{sum(record.opened_ms.values()):,.0f} to open graphs, {record.compiled} of them compiled",
        "bundle": record.bundle_sha256,
    }
    inner = "".join(f"<dt>{_safe(k)}</dt><dd>{_safe(v)}</dd>" for k, v in facts.items())
    return f"<dl>{inner}</dl>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{_safe(text)}</th>" for text in heads)
    body = "".join(
        f'<tr><td class="{"in" if row[0].startswith(" ") else ""}">{_safe(row[0].strip())}</td>'
        + "".join(f"<td>{_safe(text)}</td>" for text in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _safe(text: str) -> str:
    return escape(printable(text), quote=True)
