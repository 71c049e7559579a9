"""The errors a caller can meet, one class per thing that can be wrong.

Each carries one sentence: what was wrong, what was expected, what to do. Imports nothing of ours,
so every room may raise them.
"""

__all__ = [
    "BundleError",
    "EdgeJudgeError",
    "ExportError",
    "FidelityError",
    "InputError",
    "PolicyError",
    "ProviderError",
]


class EdgeJudgeError(Exception):
    """Base of every error that edgejudge raises on purpose."""


class BundleError(EdgeJudgeError):
    """A bundle is missing, damaged, or not what its manifest says."""


class ExportError(EdgeJudgeError):
    """A checkpoint cannot be exported, or the exported bundle failed its gate."""


class FidelityError(ExportError):
    """The exported bundle is too far from the reference to be sealed."""


class ProviderError(EdgeJudgeError):
    """An execution provider is missing, or it refused a graph."""


class PolicyError(EdgeJudgeError):
    """A policy is missing, malformed, or does not fit the bundle."""


class InputError(EdgeJudgeError):
    """An input cannot be judged. `code` is meant for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str]]:
        # Exception pickles by its message alone, which would lose the code between processes.
        return (type(self), (self.code, str(self)))
