"""Whether the policies that a bundle carries compiled are what they say they are.

Takes an opened bundle; raises a `BundleError` by the name of the policy where the tokens of a
condition are not those of its text, where a concept is called known that is not, or where a policy
of our own name and hash has other rules. Knows no engine.
"""

from collections.abc import Sequence

from edgejudge.bundle import Bundle, CompiledPolicy
from edgejudge.errors import BundleError
from edgejudge.models.concepts import known_names, knows
from edgejudge.models.prompt import Prompts
from edgejudge.policy import Policy, builtin_bytes, source_sha256
from edgejudge.printable import brief

__all__ = ["check_compiled", "check_rules"]


def check_compiled(bundle: Bundle) -> None:
    """Of every policy in it. Reads the tokenizer, which judging by them does without."""
    manifest = bundle.manifest
    if not manifest.policies:
        return
    prompts, names = Prompts.of(bundle), known_names(manifest.concepts)
    for policy in manifest.policies:
        place = f"{bundle.path}: policy '{brief(policy.name)}'"
        for rule in policy.rules:
            for condition in (each for either in rule.conditions for each in either):
                text = f"condition '{brief(condition.text)}' of rule '{brief(rule.id)}'"
                if tuple(prompts.branch_ids(condition.text)) != condition.branch_ids:
                    raise _untrue(f"{place}: the tokens of {text} ask something else")
                if condition.known != knows(names, condition.text, manifest.patterns):
                    raise _untrue(f"{place}: {text} is not known as the concepts say")
        source = builtin_bytes(policy.name)
        if source is not None and source_sha256(source) == policy.source_sha256:
            check_rules(policy, Policy.from_yaml(source, f"{policy.name}.yaml"))


def check_rules(compiled: CompiledPolicy, policy: Policy) -> None:
    """What a bundle has compiled of a policy that is known by its hash; thresholds are its own."""
    said = [(r.id, r.text, r.category, _texts(r.conditions), r.objects) for r in compiled.rules]
    meant = [(r.id, r.text, r.category, r.conditions, r.objects) for r in policy.rules]
    set_there = [(r.id, r.threshold) for r in policy.rules if r.threshold is not None]
    thresholds = {r.id: r.threshold for r in compiled.rules}
    if (
        said != meant
        or (compiled.name, compiled.version, compiled.clue)
        != (policy.name, policy.version, policy.clue)
        or any(thresholds[rule] != threshold for rule, threshold in set_there)
    ):
        raise _untrue(f"policy '{policy.name}' that the bundle carries has the hash of another")


def _texts(conditions: Sequence[Sequence[object]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(getattr(each, "text", "") for each in either) for either in conditions)


def _untrue(what: str) -> BundleError:
    return BundleError(f"{what}; do not use this bundle")
