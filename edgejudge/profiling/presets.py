"""A bundle of a published model's dimensions with random weights, made once and kept.

Takes a preset's name; gives the bundle's folder in the user's cache. What it judges means nothing;
what that takes does, before anybody has such weights.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from edgejudge.bundle import Bundle, cache_folder
from edgejudge.errors import BundleError

__all__ = ["preset_bundle"]


def preset_bundle(
    name: str, recipe: str = "balanced", progress: Callable[[str], None] = lambda _: None
) -> Path:
    """Raises ExportError for a preset whose family is not built, and without the extra `export`."""
    from edgejudge.fidelity import export_bundle, exporting_tools
    from edgejudge.policy import COMPILED, load_policy

    folder = cache_folder() / "presets" / f"{name}.{recipe}"
    try:
        return Bundle.open(folder).path
    except BundleError:
        progress(f"making a bundle of {name} with random weights, once, in {folder}")
    policies = [load_policy(policy).record() for policy in COMPILED]
    rules = [rule for policy in policies for rule in policy.rules]
    texts = [text for rule in rules for either in rule.conditions for text in either]
    make = exporting_tools().preset_checkpoint
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        checkpoint = make(name, Path(scratch), texts, None)
        new = Path(scratch) / "bundle"
        told: list[str] = []

        def tell(doing: str, _: float) -> None:
            """Each step once: it takes minutes."""
            if doing not in told[-1:]:
                told.append(doing)
                progress(doing)

        export_bundle(checkpoint, new, recipe=recipe, policies=policies, progress=tell)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    return folder
