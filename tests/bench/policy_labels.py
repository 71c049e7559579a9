"""Labels for `edgejudge calibrate` and `edgejudge risk-curve` from a calibration set.

Takes a questions.json as exports read it; writes CSV of the pictures, the questions that a policy
asks, and what people say of them. Does not know what the pictures show otherwise.
"""

import argparse
import csv
import json
from pathlib import Path

from edgejudge.policy import load_policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--policy", default="stickers")
    args = parser.parse_args()
    rules = load_policy(args.policy).rules
    asked = {text for rule in rules for either in rule.conditions for text in either}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "question", "label"])
        for picture in json.loads(args.questions.read_text()):
            known = [c for c in picture["conditions"] if c["text"] in asked]
            rows.writerows([picture["image"], c["text"], c["label"]] for c in known)


if __name__ == "__main__":
    main()
