"""Metrics of an evaluation against scipy, scikit-learn or values worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from edgejudge.errors import InputError
from edgejudge.evaluation.calibration_metrics import equal_mass_ece
from edgejudge.evaluation.estimates import Estimate, share
from edgejudge.evaluation.measured import Measured
from edgejudge.evaluation.metrics import METRICS, Choice, check, measure
from edgejudge.evaluation.metrics_beliefs import risk_coverage_curve
from edgejudge.evaluation.metrics_decisions import confusion, edit_distance
from edgejudge.evaluation.rows import Exceptional, Kind, Row, Seen, level

BINARY = ("safe", "unsafe")


def row(i: int, kind: Kind, truth: Any, said: Any, **fields: Any) -> Row:
    """A row of its own group, unless told otherwise; None is unscored."""
    why = "failed: it broke" if said is None else None
    fields = {"group": str(i), "target": "", **fields}
    return Row(example=str(i), kind=kind, truth=truth, prediction=said, unscored=why, **fields)


def rows(kind: Kind, truths: Sequence[Any], said: Sequence[Any]) -> list[Row]:
    return [row(i, kind, *pair) for i, pair in enumerate(zip(truths, said, strict=True))]


def measured(found: Sequence[Row], labels: tuple[str, ...] = ()) -> Measured:
    positive = labels[-1] if len(labels) == 2 else None
    kind: Kind = found[0].kind  # type: ignore[assignment]
    return Measured(tuple(found), kind, labels, positive)


def figures(name: str, m: Measured, **more: Any) -> dict[str, Estimate]:
    return {each.name: each for each in measure([Choice(name, **more)], m)}


# --- decisions ------------------------------------------------------------------------------------


def test_accuracy_is_told_with_and_without_the_unscored() -> None:
    m = measured(
        rows("label", ["safe", "unsafe", "safe", "unsafe"], ["safe", "unsafe", None, "uncertain"]),
        BINARY,
    )
    found = figures("accuracy", m)
    scored, everything = found["accuracy of scored"], found["accuracy over all"]
    assert (scored.value, scored.n) == (pytest.approx(2 / 3), 3)
    assert (everything.value, everything.n) == (0.5, 4)
    for each in found.values():
        assert (each.unscored, each.undecided) == (1, 1)
        assert each.method == "exact"
    exact = stats.binomtest(2, 3).proportion_ci(0.95, "exact")
    assert (scored.low, scored.high) == pytest.approx((exact.low, exact.high))


@given(
    st.lists(
        st.tuples(st.sampled_from(BINARY), st.sampled_from(("safe", "unsafe"))),
        min_size=1,
        max_size=40,
    )
)
@settings(max_examples=30, deadline=None)
def test_counts_are_those_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    truth, said = [t for t, _ in pairs], [s for _, s in pairs]
    # One group: intervals of all these would take long.
    found = [replace(each, group="") for each in rows("label", truth, said)]
    m = measured(found, BINARY)

    def one(name: str, title: str) -> float | None:
        return figures(name, m)[f"{title} of scored"].value

    accuracy = sk.accuracy_score(truth, said)
    assert one("accuracy", "accuracy") == pytest.approx(accuracy)
    if "unsafe" in truth + said:
        for beta in (1, 2):
            wanted = sk.fbeta_score(truth, said, beta=beta, pos_label="unsafe", zero_division=0)
            assert one(f"f{beta}", f"F{beta}") == pytest.approx(wanted)
    if "unsafe" in truth:
        wanted = sk.recall_score(truth, said, pos_label="unsafe")
        assert one("recall", "recall") == pytest.approx(wanted)
    if "unsafe" in said:
        wanted = sk.precision_score(truth, said, pos_label="unsafe")
        assert one("precision", "precision") == pytest.approx(wanted)
    if len(set(truth)) == 2:
        wanted = sk.balanced_accuracy_score(truth, said)
        assert one("balanced_accuracy", "balanced accuracy") == pytest.approx(wanted)


def test_a_rule_that_is_never_broken_has_no_f1() -> None:
    m = measured(rows("label", ["safe"] * 4, ["safe"] * 4), BINARY)
    found = figures("f1", m)["F1 of scored"]
    assert found.value is None and found.note.startswith("no row is positive")


def test_precision_and_recall_are_shares_of_the_rows_they_are_of() -> None:
    truth, said = ["unsafe"] * 4 + ["safe"] * 6, ["unsafe"] * 3 + ["safe"] * 7
    m = measured(rows("label", truth, said), BINARY)
    recall = figures("recall", m)["recall of scored"]
    exact = stats.binomtest(3, 4).proportion_ci(0.95, "exact")
    assert (recall.value, recall.n, recall.method) == (0.75, 4, "exact")
    assert (recall.low, recall.high) == pytest.approx((exact.low, exact.high))
    precision = figures("precision", m)["precision of scored"]
    assert (precision.value, precision.n) == (1.0, 3) and precision.low == pytest.approx(
        0.2924, abs=1e-4
    )
    none = measured(rows("label", ["safe"], ["safe"]), BINARY)
    assert "nothing to take a share of" in figures("recall", none)["recall of scored"].note


def test_f1_without_a_positive_label_is_the_macro_mean() -> None:
    truth, said = list("AABBCCAB"), list("ABBBCAAC")
    m = measured(rows("pair", truth, said), ("A", "B", "C"))
    wanted = sk.f1_score(truth, said, average="macro")
    assert figures("f1", m)["F1 of scored"].value == pytest.approx(wanted)
    one = figures("f1", m, positive="B")["F1 of scored"]
    assert one.value == pytest.approx(sk.f1_score(truth, said, labels=["B"], average="macro"))
    assert one.note == "positive: B"


def test_failing_never_raises_a_figure() -> None:
    truth = ["unsafe", "unsafe", "safe", "safe"]
    whole = measured(rows("label", truth, ["unsafe", "safe", "safe", "unsafe"]), BINARY)
    failing = measured(rows("label", truth, ["unsafe", None, "safe", None]), BINARY)
    for name, title in (("accuracy", "accuracy"), ("f1", "F1"), ("recall", "recall")):
        title = f"{title} over all"
        better, worse = figures(name, whole)[title].value, figures(name, failing)[title].value
        assert better is not None and worse is not None and worse <= better + 1 / 6
    assert figures("recall", failing)["recall of scored"].value == 1.0
    assert figures("recall", failing)["recall over all"].value == 0.5


def test_an_undecided_row_is_missed_and_no_false_alarm() -> None:
    m = measured(
        rows("label", ["unsafe", "safe", "unsafe"], ["uncertain"] * 2 + ["unsafe"]), BINARY
    )
    assert figures("recall", m)["recall of scored"].value == 0.5
    assert figures("precision", m)["precision of scored"].value == 1.0


def test_ties_as_fastchat_counts_them() -> None:
    truth = ["A", "B", "C", "C", "A"]
    said = ["A", "A", "C", "inconclusive", "C"]
    m = measured(rows("pair", truth, said), ("A", "B", "C"))
    with_tie = figures("accuracy_with_tie", m)["accuracy with tie of scored"]
    assert (with_tie.value, with_tie.n) == (0.6, 5)
    without = figures("accuracy_without_tie", m)["accuracy without tie of scored"]
    assert (without.value, without.n) == (0.5, 2)
    assert without.note == "3 rows with a tie left out"
    assert figures("accuracy", m)["accuracy of scored"].value == 0.4


@pytest.mark.parametrize(
    "one, other, away",
    [("", "", 0), ("ABCD", "ABCD", 0), ("ABCD", "ABDC", 2), ("ABCD", "BCDA", 2), ("A", "", 1)],
)
def test_edit_distance(one: str, other: str, away: int) -> None:
    assert edit_distance(one, other) == away


@given(st.text("ABCD", max_size=6), st.text("ABCD", max_size=6), st.text("ABCD", max_size=6))
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_levenshtein_is_divided_by_the_longer_order() -> None:
    m = measured(rows("order", ["ABCD", "ABCD", "AB"], ["ABDC", "ABCD", None]))
    found = figures("levenshtein", m)
    assert found["Levenshtein distance of scored"].value == 0.25
    assert found["Levenshtein distance over all"].value == 0.5  # a missing order is 1 away


def test_the_confusion_table_keeps_every_row() -> None:
    said = ["safe", "unsafe", "uncertain", None]
    m = measured(rows("label", ["safe", "safe", "unsafe", "unsafe"], said), BINARY)
    truth, columns, table = confusion(m)
    assert (truth, columns) == (BINARY, ("safe", "unsafe", "undecided", "unscored"))
    assert table.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


# --- numbers --------------------------------------------------------------------------------------

TRUE = [1.0, 2.0, 2.0, 3.0, 4.0, 5.0, 5.0]
SAID = [1.2, 2.0, 1.9, 3.3, 3.3, 4.0, 5.0]


def test_correlations_are_those_of_scipy() -> None:
    m = measured(rows("score", TRUE, SAID))
    for name, title, wanted in (
        ("pearson", "Pearson", stats.pearsonr(TRUE, SAID).statistic),
        ("spearman", "Spearman", stats.spearmanr(TRUE, SAID).statistic),
        ("kendall", "Kendall tau-b", stats.kendalltau(TRUE, SAID).statistic),
    ):
        found = figures(name, m)[title]
        assert found.value == pytest.approx(wanted)
        assert found.low is not None and found.high is not None
        assert found.low <= wanted <= found.high <= 1 + 1e-9
    (error,) = measure([Choice("mean_error")], m)
    assert error.value == pytest.approx(np.mean(np.abs(np.subtract(TRUE, SAID))))


@pytest.mark.parametrize("truth, said", [([3.0] * 5, [1.0, 2, 3, 4, 5]), ([1.0, 2], [2.0, 2])])
def test_a_correlation_of_constants_is_not_defined(truth: list[float], said: list[float]) -> None:
    for name in ("pearson", "spearman", "kendall"):
        (found,) = measure([Choice(name)], measured(rows("score", truth, said)))
        assert found.value is None and found.low is None
        assert "are the same" in found.note
        assert found.n == len(truth)


def test_one_row_and_none() -> None:
    (one,) = measure([Choice("pearson")], measured(rows("score", [1.0], [1.0])))
    assert one.value is None and "fewer than two" in one.note
    (none,) = measure([Choice("spearman")], measured(rows("score", [1.0], [None])))
    assert (none.value, none.n, none.unscored) == (None, 0, 1)
    single = figures("accuracy", measured(rows("score", [1.0], [1.2])))["accuracy of scored"]
    assert (single.value, single.n) == (1.0, 1)
    assert single.low == pytest.approx(0.025) and single.high == 1.0


def test_scores_count_as_the_nearest_level() -> None:
    assert [level(x) for x in (0.4, 0.5, 1.49, 2.5, -0.6, "A")] == ["0", "1", "1", "3", "-1", "A"]


# --- probabilities --------------------------------------------------------------------------------


def believed(truth: str, p: float, i: int, group: str | None = None) -> Row:
    said = "unsafe" if p > 0.5 else "safe"
    beliefs = {"safe": 1 - p, "unsafe": p}
    return row(i, "label", truth, said, probabilities=beliefs, group=group or str(i))


def some_beliefs() -> Measured:
    random = np.random.default_rng(3)
    p = np.round(random.uniform(size=80), 2)
    truth = [BINARY[int(u < q)] for u, q in zip(random.uniform(size=80), p, strict=True)]
    found = [believed(t, float(q), i) for i, (t, q) in enumerate(zip(truth, p, strict=True))]
    return measured([*found, row(80, "label", "safe", None)], BINARY)


def test_probabilities_are_measured_as_elsewhere() -> None:
    m = some_beliefs()
    b = m.beliefs()
    assert b.binary and len(b.outcomes) == 80
    ece = figures("ece", m)["ECE"]
    assert ece.value == pytest.approx(equal_mass_ece(b.probabilities, b.outcomes, 15).value)
    assert ece.unscored == 1 and "15 bins" in ece.note
    assert figures("ece", m)["MCE"].value >= ece.value  # type: ignore[operator]
    base = b.outcomes.mean()
    skill = 1 - sk.brier_score_loss(b.outcomes, b.probabilities) / (base * (1 - base))
    assert figures("brier_skill", m)["Brier skill"].value == pytest.approx(skill)
    auroc = figures("auroc", m)["AUROC"]
    assert auroc.value == pytest.approx(sk.roc_auc_score(b.outcomes, b.probabilities))
    assert auroc.low is not None and auroc.low < auroc.value


def test_one_class_is_not_defined_and_says_so() -> None:
    m = measured([believed("safe", p, i) for i, p in enumerate((0.1, 0.2, 0.7))], BINARY)
    for name in ("auroc", "brier_skill"):
        (found,) = measure([Choice(name)], m)
        assert found.value is None and "one label" in found.note


def test_a_higher_probability_for_every_positive_is_an_auroc_of_one() -> None:
    m = measured(
        [
            believed(t, p, i)
            for i, (t, p) in enumerate(
                [("safe", 0.1), ("safe", 0.2), ("unsafe", 0.7), ("unsafe", 0.9)]
            )
        ],
        BINARY,
    )
    assert figures("auroc", m)["AUROC"].value == 1.0


def test_more_than_two_labels_are_believed_by_the_likeliest() -> None:
    labels = ("A", "B", "C")
    found = [
        row(i, "label", t, s, probabilities=dict(zip(labels, p, strict=True)))
        for i, (t, s, p) in enumerate(
            [("A", "A", (0.8, 0.1, 0.1)), ("B", "A", (0.5, 0.3, 0.2)), ("C", "C", (0, 0.1, 0.9))]
        )
    ]
    b = measured(found, labels).beliefs()
    assert not b.binary
    assert b.probabilities.tolist() == [0.8, 0.5, 0.9] and b.outcomes.tolist() == [1, 0, 1]
    auroc = figures("auroc", measured(found, labels))["AUROC"]
    truth = [[r.truth == k for k in labels] for r in found]
    scores = [list(r.probabilities.values()) for r in found]  # type: ignore[union-attr]
    assert auroc.value == pytest.approx(sk.roc_auc_score(truth, scores, average="macro"))


def test_risk_coverage_by_hand() -> None:
    # By confidence: right 0.9, wrong 0.8, right 0.6; risks 0, 1/2, 1/3.
    found = [believed("unsafe", 0.9, 0), believed("safe", 0.8, 1), believed("safe", 0.4, 2)]
    area = figures("risk_coverage", measured(found, BINARY))["area under risk-coverage"]
    assert area.value == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    curve = risk_coverage_curve(measured([*found, row(3, "label", "safe", None)], BINARY))
    assert curve is not None and curve.coverage.tolist() == [0.25, 0.5, 0.75]
    unsure = replace(found[0], prediction="uncertain")
    last = risk_coverage_curve(measured([unsure, *found[1:]], BINARY))
    assert last is not None
    assert last.risk.tolist() == pytest.approx([1, 1 / 2, 2 / 3])  # after the others, and wrong


@given(st.permutations(range(8)))
@settings(max_examples=20)
def test_the_order_of_equal_confidences_changes_nothing(order: list[int]) -> None:
    found = [believed(BINARY[i % 2], (0.9, 0.9, 0.7, 0.2)[i // 2], i) for i in range(8)]
    one = risk_coverage_curve(measured(found, BINARY))
    other = risk_coverage_curve(measured([found[i] for i in order], BINARY))
    assert one is not None and other is not None
    assert other.risk.tolist() == pytest.approx(one.risk.tolist())


# --- conduct --------------------------------------------------------------------------------------


def test_majority_consistency_wants_more_than_half() -> None:
    def asked(i: int, *repeats: Any) -> Row:
        return row(i, "score", 3.0, 3.0, repeats=repeats)

    m = measured(
        [
            asked(0, 3.0, 3.0, 3.0, 3.4, 1.0, 2.0),  # 3 four times of six, 3.4 being a 3
            asked(1, 3.0, 3.0, 3.0, 1.0, 1.0, 1.0),
            asked(2, *[None] * 4, 2.0, 2.0),  # a missing answer agrees with nothing
            row(3, "score", 3.0, 3.0),
        ]
    )
    (found,) = measure([Choice("majority_consistency")], m)
    assert (found.value, found.n) == (pytest.approx(1 / 3), 3)
    assert found.note == "asked 6 times"


def test_order_consistency() -> None:
    def both(i: int, *orders: Any) -> Row:
        return row(i, "pair", "A", "A", orders=orders)

    m = measured(
        [both(0, "A", "A"), both(1, "A", "B"), both(2, "C", "C"), both(3, "A", None)],
        ("A", "B", "C"),
    )
    (found,) = measure([Choice("order_consistency")], m)
    assert (found.value, found.n) == (0.5, 4)


def test_stability() -> None:
    seen = {"flip": Seen("unsafe", {"safe": 0.2, "unsafe": 0.8})}
    lost = {"flip": Seen(None, None)}
    m = measured(
        [
            replace(believed("unsafe", 0.9, 0), perturbed=seen),
            replace(believed("unsafe", 0.4, 1), perturbed=seen),
            replace(believed("safe", 0.4, 2), perturbed=lost),
        ],
        BINARY,
    )
    found = figures("stability", m)
    assert found["unchanged under flip"].value == pytest.approx(1 / 3)
    moved = found["mean change of probability under flip"]
    assert (moved.value, moved.n) == (pytest.approx((0.1 + 0.4) / 2), 2)


def test_exception_recall_is_told_for_each_change() -> None:
    def under(i: int, *exceptions: Exceptional) -> Row:
        return row(i, "label", "unsafe", "unsafe", exceptions=exceptions)

    relaxed = Exceptional("violence: allowed", "safe", "safe")
    m = measured(
        [
            under(0, relaxed, Exceptional("nudity: sensitive", "unsafe", "safe")),
            under(1, replace(relaxed, prediction="unsafe")),
            under(2, replace(relaxed, prediction=None)),
        ],
        BINARY,
    )
    found = figures("exception_recall", m)
    assert found["exception recall, violence: allowed"].value == pytest.approx(1 / 3)
    assert found["exception recall, nudity: sensitive"].value == 0.0


def test_an_example_costs_once_however_many_decisions_it_has() -> None:
    cost, stages = {"image_prefixes": 1.0}, {"decode": 1.0, "decoder": 9.0}
    found = [
        replace(row(i, "label", "safe", "safe"), example=str(i // 2), target=str(i % 2), cost=cost)
        for i in range(4)
    ]
    found = [replace(each, stages_ms=stages, group=each.example) for each in found]
    (prefixes,) = measure([Choice("cost")], measured(found, BINARY))
    assert (prefixes.value, prefixes.n, prefixes.low) == (1.0, 2, None)
    assert prefixes.note == "2 in all; no interval: every draw gives the same"
    latency = figures("latency", measured(found, BINARY))
    assert latency["latency p50, ms"].value == 10.0 and latency["latency p99, ms"].n == 2


def test_the_unscored_are_a_figure_with_reasons() -> None:
    m = measured(rows("label", ["safe"] * 4, ["safe", None, None, "uncertain"]), BINARY)
    found = figures("unscored", m)
    assert (found["unscored"].value, found["unscored"].note) == (0.5, "failed 2")
    assert found["undecided"].value == 0.25


# --- intervals, and what fits ---------------------------------------------------------------------


def test_rows_of_one_picture_are_drawn_together() -> None:
    hits = np.array([1, 1, 1, 1, 0, 0, 0, 0] * 5, bool)
    alone = share("x", hits, [str(i) for i in range(40)])
    together = share("x", hits, [str(i // 4) for i in range(40)])
    assert (alone.method, together.method) == ("exact", "bootstrap")
    assert together.high - together.low > alone.high - alone.low  # type: ignore[operator]


def test_rows_that_all_agree_have_an_interval_of_groups() -> None:
    found = share("x", np.ones(12, bool), [str(i // 4) for i in range(12)])
    exact = stats.binomtest(3, 3).proportion_ci(0.95, "exact")
    assert (found.low, found.high, found.groups) == (pytest.approx(exact.low), 1.0, 3)


def test_one_group_with_rows_that_differ_has_no_interval() -> None:
    found = share("x", np.array([True, False]), ["a", "a"])
    assert (found.value, found.low) == (0.5, None)
    assert found.note == "no interval from one group"


@given(st.integers(1, 30), st.integers(0, 30))
def test_a_share_lies_in_its_interval(n: int, right: int) -> None:
    hits = np.arange(n) < right
    found = share("x", hits, [str(i) for i in range(n)])
    assert found.value is not None and found.low is not None and found.high is not None
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_targets_are_measured_apart_on_request() -> None:
    found = [
        replace(row(i, "label", "safe", said), target=target)
        for i, (target, said) in enumerate([("a", "safe"), ("a", "safe"), ("b", "unsafe")])
    ]
    made = measure([Choice("accuracy", by_target=True)], measured(found, BINARY))
    values = {(each.target, each.name): each.value for each in made}
    assert values["", "accuracy of scored"] == pytest.approx(2 / 3)
    assert values["a", "accuracy of scored"] == 1.0 and values["b", "accuracy of scored"] == 0.0


def test_what_does_not_fit_is_refused_by_name() -> None:
    def problem(*args: Any) -> str:
        with pytest.raises(InputError) as caught:
            check(*args)
        assert caught.value.code == "metric"
        return str(caught.value)

    said = problem(Choice("levenshtein"), "label", BINARY, (), "r.yaml, line 9: metrics[0]")
    assert said.startswith("r.yaml, line 9: metrics[0]: levenshtein is for answers of kind order")
    assert "accuracy" in said and "kendall" not in said
    assert "needs probabilities" in problem(Choice("ece"), "label", BINARY, (), "here")
    assert "'green'" in problem(Choice("f1", positive="green"), "label", BINARY, (), "here")
    for name, metric in METRICS.items():
        check(Choice(name), metric.kinds[0], BINARY, {metric.needs or ""}, "here")


def test_every_metric_says_what_it_is_and_gives_plain_json() -> None:
    m = some_beliefs()
    for name, metric in METRICS.items():
        function = getattr(metric.of, "func", metric.of)
        assert function.__doc__, name
        if "label" in metric.kinds:
            for each in measure([Choice(name)], m):
                value = each.to_json()
                assert each.metric == name and value["n"] == each.n
                assert (value["interval"] is None) == (value["method"] == "none")
                assert each.value is not None or each.note
