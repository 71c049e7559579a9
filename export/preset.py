"""A checkpoint of a preset's dimensions, with random weights and a stand-in tokenizer.

Takes a preset's name and some texts; gives a Checkpoint like any other. Its questions have about as
many tokens as the real tokenizer gives them, and its files about the same size; what it says means
nothing.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from edgejudge.errors import ExportError
from edgejudge.export.checkpoint import Checkpoint, open_checkpoint
from edgejudge.models.families import family_named
from edgejudge.models.preset import Preset, preset_named

__all__ = ["preset_checkpoint"]

_ANSWERS = "Yes No yes no User: Assistant: user assistant system You are a helpful assistant."


def preset_checkpoint(
    preset: str | Preset, folder: Path, texts: Sequence[str], max_pixels: int | None = None
) -> Checkpoint:
    """Writes what a checkpoint needs beside weights into `folder`, and opens it.

    `preset` is one, or the name of one. `texts` are what will be asked: their words become tokens.
    """
    if isinstance(preset, str):
        preset = preset_named(preset)
    name = preset.name
    if not preset.built:
        raise ExportError(
            f"preset {name} is of family {preset.model_type}, which is not built yet; "
            "`edgejudge export --preset list` shows which are"
        )
    place = folder / name
    place.mkdir()
    (place / "config.json").write_text(json.dumps(preset.config))
    (place / "preprocessor_config.json").write_text(json.dumps(preset.processor))
    template = family_named(preset.model_type).DEFAULT_TEMPLATE
    _stand_in(preset, [_ANSWERS, template, *texts]).save(str(place / "tokenizer.json"))
    return open_checkpoint(place, max_pixels, random_weights=True)


def _stand_in(preset: Preset, texts: Sequence[str]) -> Tokenizer:
    """Byte-level BPE over the texts, as long as the real vocabulary, special tokens in place."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Twice: a pair of tokens is merged only where it is met more than once.
    trained.train_from_iterator([text for text in texts for _ in range(2)], trainer)
    model = json.loads(trained.to_str())["model"]
    taken = set(preset.special_tokens.values())
    free = (i for i in range(max(taken) + 1) if i not in taken)
    ordered = sorted(model["vocab"], key=model["vocab"].__getitem__)
    vocabulary = dict(preset.special_tokens)
    vocabulary |= dict(zip(ordered, free, strict=False))
    vocabulary |= {f"<unused{i}>": i for i in free}
    merges = [tuple(pair) for pair in model["merges"]]
    whole = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    names = sorted(preset.special_tokens, key=preset.special_tokens.__getitem__)
    whole.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    return whole
