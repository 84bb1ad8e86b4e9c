"""One competitor timed in the process it is called in."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas  # noqa: F401  # pyarrow imports it at the first conversion: not a matter of reading
import torch
from torch import Tensor

from benchmarks.stores import COMPETITORS
from cache import FeatureStore

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class Timing:
    """One competitor in one process.

    Attributes:
        open_s: from nothing to ready for batches.
        first_batch_s: from nothing to the first packed batch.
        first_pass: samples/s, packed, of the first pass over the utterances.
        packed: samples/s, packed, afterwards.
        padded: samples/s, padded with mask.
        memory: peak of private memory, bytes.
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
    """Open a competitor and read batches from it, here and now."""
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
    """Have the C library reuse freed memory rather than give it back to the system.

    By default it decides by what was allocated before: then one reader's batches land in memory it
    had already, the next one's in fresh pages, which cost a fifth of the copy.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it accepts


def load_and_copy(store: Path) -> tuple[float, float]:
    """Seconds to load a whole store, and to copy the same bytes within memory."""
    start = perf_counter()
    cache = FeatureStore.open(store)
    features = cache.select(cache.ids, resident=True)
    loaded = perf_counter()
    copies = [values.numpy().copy() for values in features.values.values()]
    copied = perf_counter()
    assert len(copies) == len(features.values)
    return loaded - start, copied - loaded


def _rate(read: Callable[[Any], Any], batches: Iterable[tuple[int, Any]], seconds: float) -> float:
    """Samples per second; ends with the batches or after ``seconds``, whichever is first."""
    start = perf_counter()
    samples = 0
    for count, batch in batches:
        read(batch)
        samples += count
        if perf_counter() - start > seconds:
            break
    return samples / (perf_counter() - start)
