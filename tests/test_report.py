"""The table's words: what decided a picture, and nothing that could steer a terminal."""

from edgejudge.decision import decide_picture, decide_rule
from edgejudge.report import plain_table, reason, row, tally
from edgejudge.verdict import AlternativeVerdict, InputFailure, Note, Table, Verdict

Asked = list[list[tuple[str, float, bool]]]


def verdict(
    *rules: Asked, notes: tuple[Note, ...] = (), error: InputFailure | None = None, path: str = "x"
) -> Verdict:
    decided = tuple(
        decide_rule(
            f"rule{index}",
            "text",
            "category",
            0.5,
            0.05,
            [[AlternativeVerdict(*question) for question in either] for either in rule],
        )
        for index, rule in enumerate(rules)
    )
    return Verdict(
        verdict=None if error else decide_picture(decided, notes),
        path=path,
        sha256=None,
        rules=decided,
        notes=notes,
        error=error,
        bundle="b",
        bundle_sha256="",
        policy="p",
        policy_version="1",
        policy_sha256="",
        stages_ms=Table({"decode": 1.4, "vision": 2.4}),
        placement=Table({}),
        prefix_cache="off",
        reused_tokens=0,
    )


def test_a_broken_rule_is_named_with_what_broke_it() -> None:
    asked: Asked = [[("a unicorn", 0.99, False), ("a knife", 0.9, True)]]
    calm: Asked = [[("fire", 0.5, True)]]
    assert reason(verdict(calm, asked)) == "rule1 0.90 (a knife)"


def test_doubt_is_named_with_its_cause() -> None:
    asked: Asked = [[("a knife", 0.2, True), ("a unicorn", 0.1, False)]]
    assert reason(verdict(asked)) == "rule0 0.10 (a unicorn, not a known concept)"
    assert reason(verdict([[("a knife", 0.1, True), ("an axe", 0.48, True)]])) == (
        "rule0 0.48 (an axe)"
    )
    both: Asked = [[("a knife", 0.9, True)], [("a hand", 0.53, True)]]
    note = Note("animated", "only the first frame is judged", doubtful=True)
    quiet = Note("rotated", "turned", doubtful=False)
    assert reason(verdict(both, notes=(note, quiet))) == (
        "only the first frame is judged, rule0 0.53 (a hand)"
    )


def test_only_the_first_few_reasons_are_shown() -> None:
    asked: Asked = [[("a knife", 0.9, True)]]
    assert reason(verdict(*[asked] * 5)).endswith("rule2 0.90 (a knife), and 2 more")
    assert reason(verdict(*[asked] * 3)).endswith("rule2 0.90 (a knife)")


def test_rows_and_tables() -> None:
    failed = verdict(error=InputFailure("missing", "no such file"), path="a\x1b[31m\n\udcff")
    assert row(failed) == ("a\\x1b[31m\\n\\udcff", "failed", "missing: no such file", "4")
    safe = row(verdict([[("a knife", 0.1, True)]]))
    assert safe == ("x", "safe", "", "4")
    lines = plain_table([row(failed), safe]).splitlines()
    assert len(lines) == 3 and lines[2].split() == ["x", "safe", "4"]
    assert tally({"safe": 2, "failed": 1}) == "0 unsafe, 0 uncertain, 2 safe, 1 failed"
