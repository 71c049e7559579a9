"""What a family module offers: the contract between one architecture and everything around it.

A module that has these names is a family; add it to FAMILIES in models/families.py.
"""

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

from edgejudge.bundle import PromptRecord, TokensRecord
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.image import ImageSpec
from edgejudge.models.ops import Ops
from edgejudge.models.spec import ModelSpec
from edgejudge.models.tokenizer import Tokenizer

__all__ = ["Family"]

V = TypeVar("V")


class Family(Protocol):
    """Each member is described where the first family, models/smolvlm.py, defines it."""

    FAMILY: str  # the checkpoint's `model_type`
    DEFAULT_TEMPLATE: str  # asks for a {condition} where a checkpoint has no judge card
    LEAD_IN: str  # the text right before an answer
    EMBEDDINGS: str  # name of the token table
    HEAD: str  # name of the LM head, which may be tied to the table

    def read_spec(self, config: HfConfig) -> ModelSpec: ...

    def weight_names(self, spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]: ...

    def group_of(self, name: str) -> str: ...

    def read_image_spec(self, config: HfConfig, spec: ModelSpec, model: HfConfig) -> ImageSpec: ...

    def vision_inputs(
        self, spec: ModelSpec, layers: range | None = None
    ) -> dict[str, tuple[str, tuple[int | str, ...]]]: ...

    def static_vision_inputs(self, spec: ModelSpec) -> dict[int, dict[str, tuple[int, ...]]]: ...

    def vision(
        self, ops: Ops[V], spec: ModelSpec, inputs: dict[str, V], layers: range | None = None
    ) -> V: ...

    def decoder(
        self,
        ops: Ops[V],
        spec: ModelSpec,
        hidden: V,
        rotation: tuple[V, V],
        layers: range,
        rows: V | None = None,
    ) -> V: ...

    def head(
        self, ops: Ops[V], spec: ModelSpec, hidden: V, rows: tuple[int, ...] | None = None
    ) -> V: ...

    def prompt_record(
        self, tokenizer: Tokenizer, spec: ModelSpec, image: Any, template: str
    ) -> PromptRecord: ...

    def tokens_record(self, tokenizer: Tokenizer, config: HfConfig) -> TokensRecord: ...
