"""The packages of the extra `eval`, imported when they are first needed.

Takes a module's name; gives the module, or one sentence that says what to install.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from edgejudge.errors import ProviderError

__all__ = ["needed", "require"]


def needed(module: str) -> Any:
    """The module of scipy, scikit-learn, matplotlib or pyarrow. Raises ProviderError where its
    package is not installed.
    """
    package = module.split(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package:
            raise
        raise _missing(package) from None


def require(*packages: str) -> None:
    """Raises ProviderError for the first that is not installed; imports none."""
    for package in packages:
        if find_spec(package) is None:
            raise _missing(package)


def _missing(package: str) -> ProviderError:
    return ProviderError(
        f"this needs the package {package}; install it with `pip install 'edgejudge[eval]'`"
    )
