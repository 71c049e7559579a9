"""How well nano decides a policy: F1, false alarms, and how far its probabilities can be believed.

Takes a bundle, run by edgejudge as users run it, and drawn scenes: as users send them, and made so
that what a rule forbids, what only looks like it and neither come up equally often for each rule.
Fits a calibration to pictures of the val split by `edgejudge calibrate`, measures on those of the
test split, and prints one JSON document. What was judged is kept, so a second run judges nothing
again. Does not know how the model was trained.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from concepts import CONCEPTS
from evaluate import bootstrap, f1_of, size_of
from numpy.typing import NDArray
from scene import Scene, Stage, contents

from edgejudge.calibration import Calibration
from edgejudge.cli import main as edgejudge
from edgejudge.evaluation.calibration_metrics import Resampling, brier_skill, equal_mass_ece
from edgejudge.judge import Judge
from edgejudge.policy import load_policy

POLICY = load_policy("stickers")
NUMBERS = {c.phrase: i for i, c in enumerate(CONCEPTS)}
SHOWS = [[NUMBERS[t] for either in rule.conditions for t in either] for rule in POLICY.rules]
ASKED = [t for rule in POLICY.rules for either in rule.conditions for t in either]
# What looks like what a rule forbids: its near misses, and other drawings of the same category.
NEAR = [
    sorted(
        {NUMBERS[t] for t in rule.near_misses if t in NUMBERS}
        | {
            i
            for i, c in enumerate(CONCEPTS)
            if c.category in {CONCEPTS[s].category for s in shows} and i not in shows
        }
    )
    for rule, shows in zip(POLICY.rules, SHOWS, strict=True)
]
KINDS = ("broken", "near miss", "other")
KIND_SHARES = (0.3, 0.5, 0.2)


def truth(scene: Scene) -> NDArray[np.int64]:
    """Whether the picture breaks each rule: 1, 0, or -1 where it is not clear."""
    labels = []
    for shows in SHOWS:
        there = scene.present[shows]
        labels.append(1 if (there == 1).any() else -1 if (there == -1).any() else 0)
    return np.array(labels)


def near(scene: Scene) -> NDArray[np.bool_]:
    """Whether the picture shows what looks like what each rule forbids."""
    return np.array([bool((scene.present[some] == 1).any()) for some in NEAR])


def sent(split: str, count: int, args: argparse.Namespace) -> Iterator[Scene]:
    """Pictures as users send them."""
    stage = Stage(split, args.sprites, args.photos)
    for i in range(count):
        rng = np.random.default_rng([{"val": 61, "test": 67}[split], i])
        yield stage.scene(rng, size=size_of(rng))


def made(split: str, count: int, args: argparse.Namespace) -> Iterator[Scene]:
    """Pictures for one rule after another: it is broken, it nearly is, or anything."""
    stage = Stage(split, args.sprites, args.photos)
    for i in range(count):
        rng = np.random.default_rng([{"val": 71, "test": 73}[split], i])
        size = size_of(rng)
        rule, kind = i % len(SHOWS), str(rng.choice(KINDS, p=KIND_SHARES))
        allowed = [
            c
            for c in contents(rng, int(rng.integers(0, 3)))
            if kind == "other" or c not in SHOWS[rule]
        ]
        if kind == "broken":
            allowed.append(int(rng.choice(SHOWS[rule])))
        elif kind == "near miss":
            allowed += [int(c) for c in rng.choice(NEAR[rule], int(rng.integers(1, 3)))]
        yield stage.scene(rng, size=size, show=allowed)


def judged(name: str, scenes: Iterator[Scene], judge: Judge, folder: Path) -> list[dict[str, Any]]:
    """A row for each picture: its verdict, what it breaks and nearly breaks."""
    file = folder / f"{name}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    with file.open("a") as stream:
        for number, scene in enumerate(scenes):
            if number < len(rows):
                continue
            verdict = judge.screen(np.asarray(scene.image), POLICY).to_json()
            verdict["path"] = f"{name}/{number}"
            row = {
                "verdict": verdict,
                "shown": {t: int(scene.present[NUMBERS[t]]) for t in ASKED},
                "truth": truth(scene).tolist(),
                "near": near(scene).tolist(),
            }
            rows.append(row)
            stream.write(json.dumps(row) + "\n")
            stream.flush()
    return rows


def fit(rows: list[dict[str, Any]], bundle: Path, folder: Path, out: Path) -> Calibration:
    """A calibration with the labels of all rows that are clear, by the package's own command."""
    scores, labels = folder / "scores.jsonl", folder / "labels.jsonl"
    scores.write_text("".join(json.dumps(row["verdict"]) + "\n" for row in rows))
    lines = []
    for row in rows:
        path = row["verdict"]["path"]
        for rule, label in zip(POLICY.rules, row["truth"], strict=True):
            if label >= 0:
                lines.append({"path": path, "rule": rule.id, "label": label})
        for text, label in row["shown"].items():
            if label >= 0:
                lines.append({"path": path, "question": text, "label": label})
    labels.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [
        "calibrate",
        "--labels",
        str(labels),
        "--scores",
        str(scores),
        "--bundle",
        str(bundle),
    ]
    command += ["--policy", POLICY.name, "--aim", "f1", "--out", str(out)]
    if code := edgejudge(command):
        raise SystemExit(code)
    return Calibration.read(out)


def probabilities(rows: list[dict[str, Any]], calibration: Calibration | None) -> NDArray[Any]:
    """P(broken) [pictures, rules]: raw, or calibrated."""
    out = []
    for row in rows:
        line = []
        for rule in row["verdict"]["rules"]:
            made = calibration.rule(rule["id"]) if calibration else None
            either = [
                [
                    made.apply(a["probability"], a["text"]) if made else a["probability"]
                    for a in condition["alternatives"]
                ]
                for condition in rule["conditions"]
            ]
            line.append(min(map(max, either)))
        out.append(line)
    return np.array(out)


def alarms(flagged: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of the pictures that break no rule which are called unsafe."""
    clean = (labels == 0).all(axis=1)
    return float(flagged[clean].any(axis=1).mean())


def by_picture(
    statistic: Callable[[NDArray[Any], NDArray[Any]], float], flagged: Any, labels: Any
) -> dict[str, object]:
    interval = bootstrap(lambda rows: statistic(flagged[rows], labels[rows]), len(labels))
    value = round(statistic(flagged, labels), 4)
    return {"value": value, "95": interval, "pictures": len(labels)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("bundle"))
    parser.add_argument("--sprites", type=Path, default=Path("work/sprites.npz"))
    parser.add_argument("--photos", type=Path, default=Path("work/photos.npz"))
    parser.add_argument("--sent", type=int, default=1000, help="pictures as users send them")
    parser.add_argument("--made", type=int, default=1400, help="pictures made for the rules")
    parser.add_argument("--out", type=Path, default=Path("work/stickers.json"))
    args = parser.parse_args()
    judge = Judge.load(args.bundle)
    folder = Path("work/policy") / judge.bundle.fingerprint[:12]
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"sent": sent, "made": made}
    rows = {
        f"{kind} {split}": judged(
            f"{kind}-{split}", drawn[kind](split, getattr(args, kind), args), judge, folder
        )
        for kind in drawn
        for split in ("val", "test")
    }
    args.out.unlink(missing_ok=True)  # the command refuses to write over a file
    calibration = fit(rows["sent val"] + rows["made val"], args.bundle, folder, args.out)
    fitted = [calibration.rule(rule.id) for rule in POLICY.rules]
    if not all(fitted):
        raise SystemExit("some rule was not fitted; draw more pictures")
    cuts = np.array([each.threshold for each in fitted if each])
    report: dict[str, Any] = {
        "bundle": judge.bundle.manifest.name,
        "fingerprint": judge.bundle.fingerprint,
        "calibration": calibration.id,
        "machine": platform.processor() or platform.machine(),
    }
    for kind in drawn:
        test = rows[f"{kind} test"]
        labels = np.array([row["truth"] for row in test])
        flagged = probabilities(test, calibration) >= cuts
        report[kind] = {
            "policy_micro_f1": by_picture(f1_of, flagged, labels),
            "false_alarms": by_picture(alarms, flagged, labels),
            "positives": int((labels == 1).sum()),
            "decisions": int((labels >= 0).sum()),
            "policy_f1": {
                rule.id: round(f1_of(flagged[:, [i]], labels[:, [i]]), 4)
                for i, rule in enumerate(POLICY.rules)
            },
        }
    # Of pictures made for the rules: the rule each was made for, and the others it nearly breaks.
    test = rows["made test"]
    labels = np.array([row["truth"] for row in test])
    close = np.array([row["near"] for row in test])
    aimed = np.arange(len(SHOWS))[None] == (np.arange(len(test)) % len(SHOWS))[:, None]
    chosen = (labels >= 0) & (aimed | close)
    picture = np.broadcast_to(np.arange(len(test))[:, None], chosen.shape)[chosen]
    again = Resampling(picture, 500)
    report["beliefs"] = {
        "n": int(chosen.sum()),
        "near_misses": round(float((close & (labels == 0))[chosen].mean()), 4),
        "broken": round(float((labels == 1)[chosen].mean()), 4),
    }
    for name, made_by in (("raw", None), ("calibrated", calibration)):
        p = probabilities(test, made_by)[chosen]
        report["beliefs"][name] = {
            "ece_15_equal_mass": equal_mass_ece(p, labels[chosen], resampling=again).to_json(),
            "brier_skill": brier_skill(p, labels[chosen], again).to_json(),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
