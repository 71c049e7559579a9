"""A checkpoint, opened: everything about it that export reads.

Takes a folder or a Hub id; gives config, spec, preprocessing, tokenizer, weights and the judge
card, each checked against the others. Knows no bundle and no graph.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from edgejudge.bundle import ConceptRecord, PromptRecord, TokensRecord, from_json
from edgejudge.errors import ExportError
from edgejudge.export.chat_template import check_chat_template
from edgejudge.export.quantized_source import PackedWeights, read_packing
from edgejudge.export.random_weights import RandomWeights
from edgejudge.export.weights import CheckpointWeights, Source
from edgejudge.models.anyres import AnyResSpec
from edgejudge.models.concepts import pattern_problem
from edgejudge.models.families import family_for
from edgejudge.models.family import Family
from edgejudge.models.hf_config import HfConfig, read_json
from edgejudge.models.image import ImageSpec
from edgejudge.models.mosaic import MosaicSpec
from edgejudge.models.prompt import Prompts
from edgejudge.models.spec import ModelSpec
from edgejudge.models.tiles import TileSpec
from edgejudge.models.tokenizer import Tokenizer, VerdictLabels, label_ids
from edgejudge.models.vision_input import read_processor

__all__ = ["CardPolicy", "Checkpoint", "JudgeCard", "open_checkpoint"]

_CARD = "judge.json"
_CARD_VERSION = 1
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


@dataclass(frozen=True, slots=True)
class CardPolicy:
    policy: str
    thresholds: dict[str, float]


@dataclass(frozen=True, slots=True)
class JudgeCard:
    """judge.json: how a checkpoint wants to be asked, and what it claims to know. `patterns` alone
    may be left out.
    """

    schema_version: int
    name: str
    question_template: str
    labels: dict[str, tuple[str, ...]]
    concepts: tuple[ConceptRecord, ...]
    patterns: tuple[str, ...]
    policies: tuple[CardPolicy, ...]
    band: float
    calibration_set: str | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    folder: Path
    family: Family
    spec: ModelSpec
    image: ImageSpec
    tokenizer: Tokenizer
    tokens: TokensRecord
    prompt: PromptRecord
    labels: VerdictLabels
    card: JudgeCard
    weights: Source
    random_weights: bool

    @property
    def prompts(self) -> Prompts:
        """Prompts as the checkpoint itself says how they are made."""
        return Prompts(self.prompt, self.tokens.image, lambda: self.tokenizer)

    @property
    def calibration_folder(self) -> Path | None:
        """The judge card's calibration set: inside the checkpoint, or a folder beside it."""
        name = self.card.calibration_set
        if name is None:
            return None
        for folder in (self.folder / name, self.folder.parent / name):
            if (folder / "questions.json").is_file():
                return folder
        raise ExportError(
            f"{self.folder / _CARD}: calibration set {name!r} is neither in the checkpoint nor "
            "beside it, as a folder with questions.json"
        )


def open_checkpoint(
    checkpoint: str | Path,
    max_pixels: int | None = None,
    random_weights: bool = False,
    revision: str | None = None,
) -> Checkpoint:
    """A folder or a Hub id, read and checked; weights are mapped, not loaded.

    `max_pixels` bounds the pictures of a family that keeps their own grid, or cuts one into crops
    of a size that suits it. `random_weights` are
    made up in the shapes that the config means, in place of the folder's. `revision` pins a Hub id
    to a branch, tag or commit.
    """
    folder = _find(checkpoint, revision)
    config = HfConfig(read_json(folder / "config.json"), str(folder / "config.json"))
    family = family_for(config)
    spec: ModelSpec = family.read_spec(config)
    image = _bounded(family.read_image_spec(read_processor(folder), spec, config), max_pixels)
    tokenizer = Tokenizer(folder / "tokenizer.json")
    card = _read_card(folder, family.DEFAULT_TEMPLATE)
    aliases = {family.HEAD: family.EMBEDDINGS} if spec.text.tie_word_embeddings else {}
    names = dict(family.weight_names(spec))
    if random_weights:
        weights: Source = RandomWeights(names)
    else:
        packing, held = read_packing(config), CheckpointWeights(folder, aliases)
        weights = found = held if packing is None else PackedWeights(held, packing)
        found.check(names.items())
    tokens = family.tokens_record(tokenizer, config)
    prompt = family.prompt_record(tokenizer, spec, image, card.question_template)
    if not random_weights:
        check_chat_template(folder, Prompts(prompt, tokens.image, lambda: tokenizer))
    return Checkpoint(
        folder=folder,
        family=family,
        spec=spec,
        image=image,
        tokenizer=tokenizer,
        tokens=tokens,
        prompt=prompt,
        labels=label_ids(tokenizer, family.LEAD_IN, card.labels),
        card=card,
        weights=weights,
        random_weights=random_weights,
    )


def _bounded(image: ImageSpec, max_pixels: int | None) -> ImageSpec:
    if max_pixels is None:
        return image
    if isinstance(image, TileSpec | MosaicSpec):
        raise ExportError(
            "a limit of pixels is for families that keep a picture's own grid; this one cuts "
            f"pictures into tiles of {image.view} pixels"
        )
    if isinstance(image, AnyResSpec):
        sizes = tuple(size for size in image.sizes if size[0] * size[1] <= max_pixels)
        if not sizes:
            least = min(size[0] * size[1] for size in image.sizes)
            raise ExportError(
                f"the limit is {max_pixels} pixels, this checkpoint enlarges pictures to at least "
                f"{least}"
            )
        return replace(image, sizes=sizes)
    if max_pixels < max(image.min_pixels, image.unit**2):
        raise ExportError(
            f"the limit is {max_pixels} pixels, this checkpoint enlarges pictures to at least "
            f"{max(image.min_pixels, image.unit**2)}"
        )
    return replace(image, max_pixels=max_pixels)


def _find(checkpoint: str | Path, revision: str | None) -> Path:
    folder = Path(checkpoint)
    if folder.is_dir():
        if revision is not None:
            raise ExportError(f"{folder}: is a folder, which has no revision {revision!r}")
        return folder.resolve()
    if not isinstance(checkpoint, str) or not _HUB_ID.fullmatch(checkpoint):
        raise ExportError(
            f"{checkpoint}: no such folder; give a checkpoint folder, or a Hub id like "
            "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
        )
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                checkpoint, revision=revision, allow_patterns=_HUB_FILES
            )
        )
    except Exception as error:  # the client raises several unrelated classes
        raise ExportError(
            f"{checkpoint}: no such folder, and the Hub did not give it "
            f"({(str(error).splitlines() or [type(error).__name__])[0]}); bring a folder with its "
            "config.json, preprocessor_config.json, tokenizer.json, tokenizer_config.json (or "
            "chat_template.jinja) and *.safetensors, with their index if there are several"
        ) from None


def _read_card(folder: Path, template: str) -> JudgeCard:
    file = folder / _CARD
    if not file.exists():
        return JudgeCard(
            schema_version=_CARD_VERSION,
            name=folder.name,
            question_template=template,
            labels={"yes": ("Yes", " Yes", "yes", " yes"), "no": ("No", " No", "no", " no")},
            concepts=(),
            patterns=(),
            policies=(),
            band=0.05,
            calibration_set=None,
        )
    value = {"patterns": [], **read_json(file)}
    card = from_json(JudgeCard, value, str(file), ExportError)
    if card.schema_version != _CARD_VERSION:
        raise ExportError(f"{file}: schema_version is {card.schema_version}, not {_CARD_VERSION}")
    if "{condition}" not in card.question_template:
        raise ExportError(f"{file}: 'question_template' must contain {{condition}}")
    if not {"yes", "no"} <= set(card.labels):
        raise ExportError(
            f"{file}: 'labels' must be 'yes' and 'no', and may be others beside them, "
            f"got {list(card.labels)}"
        )
    if not 0 <= card.band < 0.5:
        raise ExportError(f"{file}: 'band' is {card.band}, expected 0 to 0.5")
    for pattern in card.patterns:
        if problem := pattern_problem(pattern):
            raise ExportError(f"{file}: pattern {pattern!r} {problem}")
    for policy in card.policies:
        for rule, threshold in policy.thresholds.items():
            if not 0 < threshold < 1:
                raise ExportError(
                    f"{file}: threshold of {policy.policy}.{rule} is {threshold}, expected 0 to 1"
                )
    return card
