"""The methods, one file each, and the table of their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from train.config import Config, read_options
from train.method import Method
from train.methods.ef_lstm import EFLSTM
from train.methods.lf_dnn import LFDNN
from train.methods.lmf import LMF
from train.methods.mag import MAG
from train.methods.mfn import MFN
from train.methods.misa import MISA
from train.methods.mmim import MMIM
from train.methods.mre import MRE
from train.methods.mult import MulT
from train.methods.probe import Probe
from train.methods.self_mm import SelfMM
from train.methods.semanticmac import SemanticMAC
from train.methods.tfn import TFN
from train.methods.trivial import Majority, Mean
from train.methods.unimodal import AudioAlone, TextAlone, VisionAlone
from train.task import Task

# The values of `method=`.
METHODS: dict[str, type[Method]] = {
    "semanticmac": SemanticMAC,
    "mre": MRE,
    "ef_lstm": EFLSTM,
    "lf_dnn": LFDNN,
    "tfn": TFN,
    "lmf": LMF,
    "mfn": MFN,
    "mult": MulT,
    "misa": MISA,
    "mag": MAG,
    "self_mm": SelfMM,
    "mmim": MMIM,
    "text": TextAlone,
    "audio": AudioAlone,
    "vision": VisionAlone,
    "mean": Mean,
    "majority": Majority,
}
# Diagnostic models, excluded from comparisons: linear probes of frozen representations.
PROBES: dict[str, type[Method]] = {"probe": Probe}


def build_method(config: Config, task: Task, widths: Mapping[str, int]) -> Method:
    """Build the method that ``config.method`` names, with fresh weights.

    Args:
        config: sizes and switches.
        task: the target.
        widths: columns of the features per modality.

    Raises:
        ValueError: same as `find_method`, or the method does not support the task or features.
    """
    return find_method(config)(config, task, widths)


def find_method(config: Config) -> type[Method]:
    """Look up the class that ``config.method`` names and check its options.

    Raises:
        ValueError: an unknown method or option, or an invalid value.
    """
    known = METHODS | PROBES
    if config.method not in known:
        raise ValueError(f"unknown method {config.method!r}; choose from {', '.join(known)}")
    method = known[config.method]
    if config.options and not fields(method.Options):
        given = ", ".join(f"options.{key}" for key in config.options)
        raise ValueError(f"method={config.method} has no options, given: {given}")
    read_options(method.Options, config)
    return method
