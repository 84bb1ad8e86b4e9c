"""Time one competitor of the reading benchmark in this process."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas  # noqa: F401  # else pyarrow imports it during the first conversion
import torch
from torch import Tensor

from benchmarks.stores import COMPETITORS
from cache import FeatureStore

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class Timing:
    """One competitor in one process.

    Attributes:
        open_s: seconds to open the store.
        first_batch_s: seconds to open the store and read the first packed batch.
        first_pass: samples/s, packed, in the first pass over the utterances.
        packed: samples/s, packed, after the first pass.
        padded: samples/s, padded with mask.
        memory: peak of private memory, in bytes.
    """

    open_s: float
    first_batch_s: float
    first_pass: float
    packed: float
    padded: float
    memory: int = 0


def measure(
    name: str, store: Path, folder: Path, batches: list[Tensor], seconds: float, threads: int
) -> Timing:
    """Open a competitor and read batches from it, in this process."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    start = perf_counter()
    reader = COMPETITORS[name](store, folder)
    opened = perf_counter()
    plan = reader.plan(batches)
    planned = perf_counter()
    reader.packed(plan[0])
    first = perf_counter()
    counted = [(len(batch), planned) for batch, planned in zip(batches, plan, strict=True)]
    return Timing(
        open_s=opened - start,
        first_batch_s=opened - start + first - planned,
        first_pass=_rate(reader.packed, counted, 2 * seconds),
        packed=_rate(reader.packed, itertools.cycle(counted), seconds),
        padded=_rate(reader.padded, itertools.cycle(counted), seconds),
    )


def keep_freed_memory() -> None:
    """Make the C library reuse freed memory instead of returning it to the system.

    By default it decides by earlier allocations: the batches of one reader are then written to
    memory that it holds already, those of the next to new pages, which cost a fifth of the copy.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the maximum


def load_and_copy(store: Path) -> tuple[float, float]:
    """Return the seconds to load a whole store, and to copy the same bytes within memory."""
    start = perf_counter()
    cache = FeatureStore.open(store)
    features = cache.select(cache.ids, resident=True)
    loaded = perf_counter()
    copies = [values.numpy().copy() for values in features.values.values()]
    copied = perf_counter()
    assert len(copies) == len(features.values)
    return loaded - start, copied - loaded


def _rate(read: Callable[[Any], Any], batches: Iterable[tuple[int, Any]], seconds: float) -> float:
    """Return the samples per second; ends with the batches or after ``seconds``."""
    start = perf_counter()
    samples = 0
    for count, batch in batches:
        read(batch)
        samples += count
        if perf_counter() - start > seconds:
            break
    return samples / (perf_counter() - start)
