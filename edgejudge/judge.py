"""Judge: a bundle and an engine, asked whether pictures break the rules of a policy.

Takes pictures as paths, bytes, PIL images or arrays; gives frozen verdicts. One picture is decoded,
encoded and prefilled once, and every question of the policy is scored over that prefix; the next
one is decoded and encoded meanwhile. Knows no graph, provider or file format.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, overload

from edgejudge.ahead import one_ahead
from edgejudge.array_store import ArrayStore
from edgejudge.batches import Batches, BatchScorer
from edgejudge.bundle import Bundle
from edgejudge.calls import Calls
from edgejudge.canaries import placed
from edgejudge.errors import BundleError, InputError
from edgejudge.goldens import check_canary
from edgejudge.images import DEFAULT_LIMITS, ImageInput, Limits
from edgejudge.models.prompt import Prompts
from edgejudge.placed_work import PlacedWork
from edgejudge.plan import Plan, make_plan
from edgejudge.plan_options import (
    calibrated,
    decided_by,
    gated,
    open_calibration,
    strictly,
    timed,
)
from edgejudge.policy import Policy, builtin_bytes
from edgejudge.prefix_cache import PrefixCache
from edgejudge.regions import RegionProposer, Regions, regions_of
from edgejudge.screening import OneAhead, Scorer, Screening
from edgejudge.stability import stably
from edgejudge.tracing import Traces
from edgejudge.turns import Stop, Turns
from edgejudge.verdict import Verdict
from edgejudge.writing import WITHOUT_BUDGET, Writes

if TYPE_CHECKING:
    from edgejudge.calibration import Calibration

__all__ = ["Judge", "Scorer", "default_bundle"]


PREFIX_CACHE_BYTES = 64 << 20
WAITING = 64
BATCH = 8
PolicyLike = str | PathLike[str] | Policy | Plan


def default_bundle() -> Path:
    """The folder of the judge that ships with the package."""
    import edgejudge.models

    return Path(edgejudge.models.__file__).parent / "nano" / "bundle"


class Judge(Calls, Writes, PlacedWork, Traces):
    """Safe to use from several threads: one at a time has the engine, first come, first served."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Scorer | BatchScorer,
        limits: Limits = DEFAULT_LIMITS,
        prefix_cache: PrefixCache | None = None,
        waiting: int = WAITING,
        batch: int = BATCH,
        proposer: RegionProposer | None = None,
        calibration: "Calibration | None" = None,
    ) -> None:
        """`load` is the usual way in; give an engine of your own to run the graphs elsewhere."""
        if batch < 1:
            raise ValueError(f"a batch has at least 1 picture, got {batch}")
        self.bundle = bundle
        self.engine: Scorer | BatchScorer = engine
        self.limits = limits
        self.prefix_cache = prefix_cache
        self.batch = batch
        self._turns = Turns(waiting)
        self._prompts = Prompts.of(bundle)
        self._way: Screening | Batches
        if isinstance(engine, BatchScorer):
            self._way = Batches(bundle, engine, self._prompts, limits)
        else:
            self._way = Screening(bundle, engine, self._prompts, limits, prefix_cache, proposer)
        self._builtin_plans: dict[str, Plan] = {}
        self._calibration = calibration

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
        prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
        prefix_store: str | PathLike[str] | None = None,
        waiting: int = WAITING,
        release_vision: bool = False,
        memory_budget: int | None = None,
        batch: int = BATCH,
        place: str | None = None,
        strict: bool = False,
        deadline: float | None = None,
        proposer: RegionProposer | None = None,
        calibration: "str | PathLike[str] | Calibration | None" = None,
    ) -> Self:
        """A judge from a bundle folder, or the one that ships with the package.

        `fingerprint` pins the manifest against tampering, `verify` hashes every file again. A
        picture judged again, under whatever policy, is not computed again while its prefix fits
        `prefix_cache_bytes` (0 keeps nothing); the folder `prefix_store` keeps prefixes and
        language priors longer than the process. `release_vision` frees the vision graph after each
        picture, which takes less memory and more time. Of several threads that use the judge, at
        most `waiting` may wait.

        With `memory_budget`, in bytes and for the whole process, a judge that would not fit is read
        from disk a few layers at a time: `batch` pictures of a list or stream pass them together,
        no prefix is kept, and it writes no text.

        `place` puts stages on other devices, like "vision=gpu,decoder.0=npu:qnn,decoder.1=cpu". A
        form of graphs that does not give the canary's label logits on a device is not used there,
        and a device that fails, or does not end within `deadline` seconds, is passed over: the CPU
        does the work instead, and verdicts say so in a note. `strict` raises ProviderError for
        either when the judge is loaded, and for nodes that a provider leaves to the CPU.

        A `calibration`, opened or the file of `edgejudge calibrate`, decides the rules that it was
        fitted to; each policy is checked against it by `plan`. `proposer` finds the objects of
        CLUE's conditions in pictures that are given without regions.

        Raises BundleError for a bundle that is missing, damaged, not the one that was pinned or too
        large for the budget, and for one with random weights unless `allow_random` says that its
        verdicts are not wanted; ProviderError where this machine does not give the label logits of
        the bundle's canary, which is asked once for a bundle and a machine, or with `verify`;
        InputError for a calibration that is none, or of another bundle.
        """
        from edgejudge.runtime import Engine

        folder = default_bundle() if path is None else Path(path)
        bundle = Bundle.open(folder, fingerprint=fingerprint, verify=verify)
        if bundle.manifest.random_weights and not allow_random:
            raise BundleError(
                f"{folder}: its weights are random, made to measure latency, so a verdict of it "
                "would mean nothing; give a bundle of a real checkpoint, or --allow-random"
            )
        fitted = None if calibration is None else open_calibration(calibration, bundle.fingerprint)
        if memory_budget is not None and place is not None:
            raise InputError(
                "placement", "a memory budget is kept by the CPU alone; give it or place, not both"
            )
        if memory_budget is not None:
            from edgejudge.runtime.sliced import SlicedEngine, fits, most_pixels

            if not fits(bundle, memory_budget):
                sliced = SlicedEngine.open(bundle, memory_budget, threads)
                most = min(limits.max_pixels, most_pixels(memory_budget))
                # Frames lie in memory together, twice where they are transparent.
                frames = min(limits.max_frame_pixels, most // 2)
                limits = replace(limits, max_pixels=most, max_frame_pixels=frames)
                check_canary(bundle, sliced, again=verify)
                return cls(bundle, sliced, limits, None, waiting, batch, None, fitted)
            prefix_cache_bytes = 0  # it might take what was left
        cache = None
        if prefix_cache_bytes or prefix_store is not None:
            store = None if prefix_store is None else ArrayStore(Path(prefix_store))
            cache = PrefixCache(prefix_cache_bytes, store)
        engine = Engine.open(bundle, threads=threads)
        engine.release_vision = release_vision
        check_canary(bundle, engine, again=verify)
        if place is not None:
            engine.fleet = placed(bundle, engine, place, deadline, strict, again=verify)
        engine.foresee()
        return cls(bundle, engine, limits, cache, waiting, BATCH, proposer, fitted)

    @overload
    def screen(
        self,
        image: ImageInput,
        policy: PolicyLike = "stickers",
        timeout: float | None = None,
        *,
        regions: Regions | None = None,
        strictness: Mapping[str, str] | None = None,
        budget_ms: float | None = None,
        first_broken: bool = False,
        stable: int = 0,
    ) -> Verdict: ...

    @overload
    def screen(
        self,
        image: list[ImageInput] | tuple[ImageInput, ...],
        policy: PolicyLike = "stickers",
        timeout: float | None = None,
        *,
        regions: Regions | None = None,
        strictness: Mapping[str, str] | None = None,
        budget_ms: float | None = None,
        first_broken: bool = False,
        stable: int = 0,
    ) -> list[Verdict]: ...

    def screen(
        self,
        image: ImageInput | list[ImageInput] | tuple[ImageInput, ...],
        policy: PolicyLike = "stickers",
        timeout: float | None = None,
        *,
        regions: Regions | None = None,
        strictness: Mapping[str, str] | None = None,
        budget_ms: float | None = None,
        first_broken: bool = False,
        stable: int = 0,
    ) -> Verdict | list[Verdict]:
        """One verdict per picture, in order.

        A picture that cannot be judged, or not within `timeout` seconds, has `verdict` None and
        says why in `error`; it is never `safe`, and the others of a list are judged all the same.

        `policy` may be a plan, as `plan` makes it, which can ask for another method or the
        relevance gate; `strictness` is as in Policy.with_strictness. `regions` say where objects
        are, for policies that CLUE decides: those of the one picture, or a mapping of paths, as
        they are given, to those of each.

        With `budget_ms` for each picture rules are asked in the order of expected information per
        millisecond as long as they are predicted to fit; `first_broken` asks no more when a rule is
        broken. What was not asked is `uncertain`.

        Of a file with several frames or with transparency each variant is judged, and the worst
        counts for each rule. With `stable` changed copies (resized, recompressed, cropped, flipped)
        the mean over the picture and them decides, and each rule says how far it moved.
        """
        plan = self.plan(
            policy,
            strictness=strictness,
            budget_ms=budget_ms,
            first_broken=first_broken,
            stable=stable,
        )
        if isinstance(image, list | tuple):
            return list(self.stream(image, plan, timeout, regions=regions))
        return self._screen(image, plan, Stop(timeout), regions)

    async def screen_async(
        self,
        image: ImageInput,
        policy: PolicyLike = "stickers",
        timeout: float | None = None,
        *,
        regions: Regions | None = None,
    ) -> Verdict:
        """As `screen` of one picture, beside an event loop; a cancelled task stops at its next
        step.
        """
        import asyncio  # here: nobody else needs an event loop, and it loads slowly

        stop = Stop(timeout)
        try:
            return await asyncio.to_thread(self._screen, image, self.plan(policy), stop, regions)
        except asyncio.CancelledError:
            stop.cancel()
            raise

    def stream(
        self,
        images: Iterable[ImageInput],
        policy: PolicyLike = "stickers",
        timeout: float | None = None,
        *,
        regions: Regions | None = None,
        stable: int = 0,
    ) -> Iterator[Verdict]:
        """As `screen` of a list, one verdict at a time.

        `images` is read in another thread, one picture ahead of the one that is judged. Within a
        memory budget they are read a batch at a time instead, and `timeout` is for a batch.
        """
        plan = self.plan(policy, stable=stable)
        Stop(timeout)  # a bad value is told now, not with the first picture
        if not (regions is None or isinstance(regions, Mapping)):
            raise InputError("regions", "regions of several pictures are a mapping of their paths")
        self._check_regions(regions, plan)
        return self._stream(iter(images), plan, timeout, regions)

    def _stream(
        self,
        images: Iterator[ImageInput],
        plan: Plan,
        timeout: float | None,
        regions: Regions | None,
    ) -> Iterator[Verdict]:
        if isinstance(self._way, Batches):
            while some := list(islice(images, self.batch)):
                yield from self._way.judge(some, plan, Stop(timeout), self._turns)
            return
        screening = self._way

        def prepare(image: ImageInput) -> OneAhead:
            return screening.prepare(image, Stop(), plan, regions_of(image, regions))

        for prepared in one_ahead(images, prepare, screening.give_up):
            yield screening.finish(prepared, plan, Stop(timeout), self._turns)

    def _screen(
        self, image: ImageInput, plan: Plan, stop: Stop, regions: Regions | None
    ) -> Verdict:
        self._check_regions(regions, plan)
        if isinstance(self._way, Batches):
            return self._way.judge([image], plan, stop, self._turns)[0]
        made = self._way.prepare(image, stop, plan, regions_of(image, regions))
        return self._way.finish(made, plan, stop, self._turns)

    def _check_regions(self, regions: Regions | None, plan: Plan) -> None:
        if regions and plan.clue is None:
            raise InputError(
                "regions", f"policy '{plan.policy}' is decided by thresholds; regions are for clue"
            )
        if regions and isinstance(self._way, Batches):
            raise InputError(
                "memory_budget", f"regions need the whole decoder in memory{WITHOUT_BUDGET}"
            )

    def language_priors(
        self, policy: PolicyLike = "stickers", timeout: float | None = None
    ) -> dict[str, float]:
        """Condition -> P(yes | no image): what the model says before it has seen anything.

        A condition with a high one is believed too easily; word it otherwise. Those of compiled
        policies are in the bundle, others are computed once and kept in `prefix_store`. Raises
        InputError for a timeout.
        """
        plan = self.plan(policy)
        texts = [q.text for rule in plan.rules for either in rule.conditions for q in either]
        return self._way.priors(texts, Stop(timeout), self._turns, plan.question)

    def plan(
        self,
        policy: PolicyLike,
        *,
        strictness: Mapping[str, str] | None = None,
        method: Literal["clue", "thresholds"] | None = None,
        reasoning: bool | None = None,
        relevance_gate: bool = False,
        budget_ms: float | None = None,
        first_broken: bool = False,
        stable: int = 0,
    ) -> Plan:
        """The policy made ready for this bundle, for `screen` and `stream`.

        `strictness` is as in Policy.with_strictness, and nothing is loaded again for it. `method`
        and `reasoning` go before what the policy says; `relevance_gate` skips rules whose
        text is not about the picture, where the bundle has an encoder for that; `budget_ms`,
        `first_broken` and `stable` are as in `screen`. Raises PolicyError for a policy that is
        malformed, and InputError for what does not go together.
        """
        policy = strictly(policy, strictness)
        if isinstance(policy, Plan):
            if policy.bundle != self.bundle.fingerprint:
                raise InputError("plan", "the plan was made for another bundle; make it again")
            plan = policy
        elif isinstance(policy, str) and policy in self._builtin_plans:
            plan = self._builtin_plans[policy]
        else:
            plan = make_plan(policy, self.bundle.manifest, self._prompts)
            if self._calibration is not None:
                plan = calibrated(plan, self._calibration)
            if isinstance(policy, str) and builtin_bytes(policy) is not None:
                self._builtin_plans[policy] = plan
        plan = stably(timed(decided_by(plan, method, reasoning), budget_ms, first_broken), stable)
        if isinstance(self._way, Batches):
            refused = {
                "a time budget is": plan.budget is not None,
                "changed copies are": plan.stable > 0,
                "the relevance gate is": relevance_gate,
            }
            for what in (what for what, wanted in refused.items() if wanted):
                raise InputError("memory_budget", f"{what} not for little memory{WITHOUT_BUDGET}")
        return gated(plan, self.bundle.manifest) if relevance_gate else plan
