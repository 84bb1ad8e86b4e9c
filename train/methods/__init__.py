"""The methods: one file and one line of this table each."""

from __future__ import annotations

from collections.abc import Mapping

from train.config import Config
from train.method import Method
from train.methods.semanticmac import SemanticMAC
from train.task import Task

METHODS: dict[str, type[Method]] = {
    "semanticmac": SemanticMAC,
}


def build_method(config: Config, task: Task, widths: Mapping[str, int]) -> Method:
    """The method that ``config.method`` names, freshly initialised.

    Args:
        config: sizes and switches.
        task: the target.
        widths: columns of the cached features per modality.

    Raises:
        ValueError: there is no such method.
    """
    if config.method not in METHODS:
        raise ValueError(f"no method is called {config.method!r}; there are: {', '.join(METHODS)}")
    return METHODS[config.method](config, task, widths)
