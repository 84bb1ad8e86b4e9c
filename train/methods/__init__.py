"""The methods: one file and one line of this table each."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from train.config import Config, read_options
from train.method import Method
from train.task import Task

# What `method=` may name, and where its class stands: <module of this package>.<class>.
METHODS = {
    "semanticmac": "semanticmac.SemanticMAC",
    "mre": "mre.MRE",
    "ef_lstm": "ef_lstm.EFLSTM",
    "lf_dnn": "lf_dnn.LFDNN",
    "tfn": "tfn.TFN",
    "lmf": "lmf.LMF",
    "mfn": "mfn.MFN",
    "mult": "mult.MulT",
    "misa": "misa.MISA",
    "mag": "mag.MAG",
    "self_mm": "self_mm.SelfMM",
    "mmim": "mmim.MMIM",
    "text": "unimodal.TextAlone",
    "audio": "unimodal.AudioAlone",
    "vision": "unimodal.VisionAlone",
    "mean": "trivial.Mean",
    "majority": "trivial.Majority",
}
# Diagnostic models, left out of comparisons: linear probes of frozen representations.
PROBES = {"probe": "probe.Probe"}


def build_method(config: Config, task: Task, widths: Mapping[str, int]) -> Method:
    """The method that ``config.method`` names, freshly initialised.

    Args:
        config: sizes and switches.
        task: the target.
        widths: columns of the cached features per modality.

    Raises:
        ValueError: as `find_method`, or the method cannot learn this task from these features.
    """
    return find_method(config)(config, task, widths)


def find_method(config: Config) -> type[Method]:
    """The class that ``config.method`` names.

    Raises:
        ValueError: there is no such method, no such option of it, or a wrong value.
    """
    known = METHODS | PROBES
    if config.method not in known:
        raise ValueError(f"no method is called {config.method!r}; there are: {', '.join(known)}")
    file, _, name = known[config.method].partition(".")
    module = import_module(f"train.methods.{file}")
    if config.options and not hasattr(module, "Options"):
        given = ", ".join(f"options.{key}" for key in config.options)
        raise ValueError(f"method={config.method} has no options, given: {given}")
    if hasattr(module, "Options"):
        read_options(module.Options, config)
    kind: type[Method] = getattr(module, name)
    return kind
