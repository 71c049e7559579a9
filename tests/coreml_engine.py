"""An engine whose stages are Core ML's, and what it ran where.

Takes a tiny judge of coreml_cases.py and places; asks its questions. Knows not whether Core ML is
here or an interpreter in its place.
"""

from typing import Any

from coreml_cases import Case
from edgejudge.bundle import Bundle
from edgejudge.canaries import placed
from edgejudge.runtime import Engine

__all__ = ["ALL", "ENGINE", "answers", "engine_on", "ran"]

ALL = "vision=coreml,decoder=coreml,writer=coreml"
ENGINE = "coreml:CPU_AND_NE"


def engine_on(bundle: Bundle, place: str, **more: Any) -> Engine:
    engine = Engine.open(bundle, threads=1)
    engine.fleet = placed(bundle, engine, place, **more)
    engine.trace = engine.new_trace()
    return engine


def answers(engine: Engine, case: Case, packed: bool = True) -> Any:
    visual = engine.encode_image(case.image)
    prefix = engine.prefill(case.ids, visual, case.positions)
    return engine.score(prefix, case.branches, packed)


def ran(engine: Engine, *stages: str) -> set[str]:
    """Devices that ran these stages, or tried to, by the trace."""
    return {s.device for s in engine.trace.spans if s.name in (stages or ("decoder",))}
