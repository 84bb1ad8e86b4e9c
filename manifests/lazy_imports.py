"""Import the modules of a package's names on first use (PEP 562).

PyTorch, zarr and pandas take seconds to import; ``--help`` and most mistakes need none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module-level ``__getattr__`` for a package.

    Args:
        package: ``__name__`` of the package.
        modules: the module that defines each name.
    """

    def getattribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules[name]), name)

    return getattribute
