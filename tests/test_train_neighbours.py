"""The neighbour search keeps a bounded number of distances for any number of utterances."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from train.model import neighbours
from train.model.neighbours import nearest


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor that an operation returned inside the mode."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, torch.Tensor):
                self.numbers = max(self.numbers, each.numel())
        return out


@pytest.mark.parametrize("n", [5, 99, 100, 101, 640, 2500])
def test_memory_grows_with_the_utterances_not_with_their_square(monkeypatch, n):
    cells = 1000
    monkeypatch.setattr(neighbours, "CELLS", cells)
    # Of width one and with one neighbour nothing but a block of distances is larger than N.
    features_N1 = torch.randn(n, 1, generator=torch.Generator().manual_seed(1))
    with Largest() as largest:
        nearest(features_N1, 1, index="exact")
    assert largest.numbers <= max(cells, n)
    assert largest.numbers >= min(n * n, max(cells - n, n))  # blocks, not one row after another
