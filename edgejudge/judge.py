"""Judge: a bundle and an engine, asked whether pictures break the rules of a policy.

Takes pictures as paths, bytes, PIL images or arrays; gives frozen verdicts. One picture is decoded,
encoded and prefilled once, and every question of the policy is scored over that prefix. Knows no
graph, provider or file format.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol, Self, overload

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle
from edgejudge.decision import decide_picture, decide_rule
from edgejudge.errors import BundleError, InputError, ProviderError
from edgejudge.images import DEFAULT_LIMITS, ImageInput, Limits, decode, read_bytes
from edgejudge.models.image import image_spec, preprocess
from edgejudge.models.prompt import Prompts
from edgejudge.models.tokenizer import Tokenizer
from edgejudge.plan import Plan, make_plan
from edgejudge.policy import Policy, builtin_bytes
from edgejudge.verdict import AlternativeVerdict, InputFailure, Note, RuleVerdict, Table, Verdict

__all__ = ["Judge", "Scorer", "default_bundle"]


class Spans(Protocol):
    """The part of a trace that judging writes and reads."""

    @property
    def spans(self) -> Sequence[Any]: ...
    def span(self, name: str) -> AbstractContextManager[None]: ...
    def clear(self) -> None: ...


class Scorer(Protocol):
    """What a Judge needs of an engine; `edgejudge.runtime.Engine` is one."""

    @property
    def trace(self) -> Spans: ...
    @property
    def placement(self) -> dict[str, str]: ...
    def encode_image(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]: ...
    def prefill(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | None,
        positions: NDArray[np.int64] | None,
    ) -> Any: ...
    def score(self, prefix: Any, branches: Sequence[Sequence[int]]) -> NDArray[np.float32]: ...
    def label_probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]: ...


def default_bundle() -> Path:
    """The folder of the judge that ships with the package."""
    import edgejudge.models

    return Path(edgejudge.models.__file__).parent / "nano" / "bundle"


class Judge:
    """Not for use by two threads at once: its engine has one cache."""

    def __init__(self, bundle: Bundle, engine: Scorer, limits: Limits = DEFAULT_LIMITS) -> None:
        """`load` is the usual way in; give an engine of your own to run the graphs elsewhere."""
        self.bundle = bundle
        self.engine = engine
        self.limits = limits
        manifest = bundle.manifest
        self._image_spec = image_spec(manifest.preprocessing)
        self._prompts = Prompts(
            manifest.prompt,
            manifest.tokens.image,
            lambda: Tokenizer(bundle.file("tokenizer.json")),
        )
        self._builtin_plans: dict[str, Plan] = {}

    @classmethod
    def load(
        cls,
        path: str | PathLike[str] | None = None,
        fingerprint: str | None = None,
        *,
        threads: int | None = None,
        verify: bool = False,
        limits: Limits = DEFAULT_LIMITS,
        allow_random: bool = False,
    ) -> Self:
        """A judge from a bundle folder, or the one that ships with the package.

        `fingerprint` pins the manifest against tampering, `verify` hashes every file again.
        Raises BundleError for a bundle that is missing, damaged or not the one that was pinned, and
        for one with random weights unless `allow_random` says that its verdicts are not wanted.
        """
        from edgejudge.runtime import Engine

        folder = default_bundle() if path is None else Path(path)
        bundle = Bundle.open(folder, fingerprint=fingerprint, verify=verify)
        if bundle.manifest.random_weights and not allow_random:
            raise BundleError(
                f"{folder}: its weights are random, made to measure latency, so a verdict of it "
                "would mean nothing; give a bundle of a real checkpoint, or --allow-random"
            )
        return cls(bundle, Engine.open(bundle, threads=threads), limits)

    @overload
    def screen(
        self, image: ImageInput, policy: str | PathLike[str] | Policy = "stickers"
    ) -> Verdict: ...

    @overload
    def screen(
        self,
        image: list[ImageInput] | tuple[ImageInput, ...],
        policy: str | PathLike[str] | Policy = "stickers",
    ) -> list[Verdict]: ...

    def screen(
        self,
        image: ImageInput | list[ImageInput] | tuple[ImageInput, ...],
        policy: str | PathLike[str] | Policy = "stickers",
    ) -> Verdict | list[Verdict]:
        """One verdict per picture, in order.

        A picture that cannot be judged has `verdict` None and says why in `error`; it is never
        `safe`, and the others of a list are judged all the same.
        """
        if isinstance(image, list | tuple):
            return list(self.stream(image, policy))
        return self._screen(image, self.plan(policy))

    def stream(
        self,
        images: Iterable[ImageInput],
        policy: str | PathLike[str] | Policy = "stickers",
    ) -> Iterator[Verdict]:
        """As `screen` of a list, one verdict at a time."""
        plan = self.plan(policy)
        return (self._screen(image, plan) for image in images)

    def plan(self, policy: str | PathLike[str] | Policy) -> Plan:
        """The policy made ready for this bundle. Raises PolicyError for one that is malformed."""
        if isinstance(policy, str) and policy in self._builtin_plans:
            return self._builtin_plans[policy]
        plan = make_plan(policy, self.bundle.manifest, self._prompts)
        if isinstance(policy, str) and builtin_bytes(policy) is not None:
            self._builtin_plans[policy] = plan
        return plan

    def _screen(self, image: ImageInput, plan: Plan) -> Verdict:
        trace = self.engine.trace
        trace.clear()
        path: str | None = None
        sha256: str | None = None
        rules: tuple[RuleVerdict, ...] = ()
        notes: tuple[Note, ...] = ()
        failure: InputFailure | None = None
        try:
            with trace.span("decode"):
                if isinstance(image, str | PathLike):
                    path = fspath(image)
                    image = read_bytes(path, self.limits)
                if isinstance(image, bytes | bytearray | memoryview):
                    sha256 = hashlib.sha256(image).hexdigest()
                picture = decode(image, self.limits)
            rules = self._judge(picture.rgb, plan)
            notes = picture.notes + plan.notes
        except InputError as error:
            failure = InputFailure(error.code, str(error))
        except MemoryError:
            failure = InputFailure("out_of_memory", "it does not fit into memory; scale it down")
        except ProviderError as error:
            failure = InputFailure("engine_failed", str(error))
        manifest = self.bundle.manifest
        return Verdict(
            verdict=None if failure else decide_picture(rules, notes),
            path=path,
            sha256=sha256,
            rules=rules,
            notes=notes,
            error=failure,
            bundle=manifest.name,
            bundle_sha256=self.bundle.fingerprint,
            policy=plan.policy,
            policy_version=plan.version,
            policy_sha256=plan.sha256,
            stages_ms=self._stages_ms(),
            placement=Table({} if failure else self.engine.placement),
        )

    def _judge(self, rgb: NDArray[np.uint8], plan: Plan) -> tuple[RuleVerdict, ...]:
        trace, engine = self.engine.trace, self.engine
        with trace.span("preprocess"):
            seen = preprocess(rgb, self._image_spec)
        visual = engine.encode_image(seen.feeds)  # [N, D]
        grid = (seen.rows, seen.cols)
        prefix = engine.prefill(
            self._prompts.prefix_ids(*grid), visual, self._prompts.prefix_positions(*grid)
        )
        logits = engine.score(prefix, plan.branches)  # [B, R]
        with trace.span("decide"):
            probabilities = engine.label_probabilities(logits).tolist()  # [B]
            return tuple(
                decide_rule(
                    rule.id,
                    rule.text,
                    rule.category,
                    rule.threshold,
                    plan.band,
                    [
                        [AlternativeVerdict(q.text, probabilities[q.branch], q.known) for q in each]
                        for each in rule.conditions
                    ],
                )
                for rule in plan.rules
            )

    def _stages_ms(self) -> Table[float]:
        """Outermost spans only: a stage inside another is part of that one's time."""
        stages: dict[str, float] = {}
        for span in self.engine.trace.spans:
            if span.parent is None:
                stages[span.name] = stages.get(span.name, 0.0) + span.ms
        return Table(stages)
