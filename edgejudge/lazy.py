"""Names of a package whose modules are imported when the names are first asked for.

Takes the names with their modules; gives what Python calls for a module's attributes, PEP 562.
Knows nothing of the package.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

__all__ = ["lazily"]


def lazily(
    package: str, names: Sequence[str], homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that has `names`; `homes` says in which of its
    modules each of them is that it does not define itself.
    """

    def attribute(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return attribute, lambda: sorted(names)
