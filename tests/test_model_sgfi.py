"""Gated bridge attention against equations (6) to (9) in loops and float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.slow_interaction import interaction
from train.config import SGFIConfig
from train.model.layers import masked_mean
from train.model.sgfi import AttentionMasks, GatedInteraction, pooling_weights

WIDTH, HEADS = 8, 2


def make(**switches):
    torch.manual_seed(0)
    config = SGFIConfig(layers=2, heads=HEADS, **({"bridge_tokens": 3} | switches))
    stack = GatedInteraction(WIDTH, 0.1, config).double().eval()
    for parameter in stack.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return stack, config


def padded(parts, length, left):
    rows = [
        F.pad(part, (0, 0, *((length - len(part), 0) if left else (0, length - len(part)))))
        for part in parts
    ]
    ones = [torch.ones(len(part), 1) for part in parts]
    mask = torch.stack(
        [
            F.pad(one, (0, 0, *((length - len(one), 0) if left else (0, length - len(one)))))
            for one in ones
        ]
    )
    # the values of the padding do not matter
    noise = torch.randn(length, WIDTH, dtype=torch.float64)
    mask = mask[..., 0].bool()
    return torch.where(mask[..., None], torch.stack(rows), noise), mask


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"gate": "output"},
        {"gate": "none"},
        {"multi_query": False},
        {"bridge_tokens": 0},
        {"bridge_tokens": 0, "multi_query": False},
        {"bridge_tokens": 7},
    ],
)
def test_stack_is_the_formula_whatever_the_padding(switches, left):
    stack, config = make(**switches)
    queries = [torch.randn(n, WIDTH, dtype=torch.float64) for n in (5, 1, 8)]
    keys = [torch.randn(n, WIDTH, dtype=torch.float64) for n in (2, 6, 1)]
    x, mask_x = padded(queries, 9, left)
    kv, mask_kv = padded(keys, 7, left)
    with torch.no_grad():
        masks = AttentionMasks.build([9], mask_x, mask_kv[:, None], config.bridge_tokens)
        result = stack(x, kv, masks)
        for i, (query, key) in enumerate(zip(queries, keys, strict=True)):
            expected = interaction(stack, config, query, key)
            torch.testing.assert_close(result[i][mask_x[i]], expected)
            pooled = masked_mean(result, mask_x)[i]
            torch.testing.assert_close(pooled, expected.mean(0))


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 5), st.integers(0, 5))
def test_pooling_is_adaptive_average_pooling_of_the_real_positions(length, tokens, left, right):
    mask = torch.tensor([[False] * left + [True] * length + [False] * right])
    x = torch.randn(length, 3)
    pooled = pooling_weights(mask, tokens)[0] @ F.pad(x, (0, 0, left, right))
    torch.testing.assert_close(pooled, F.adaptive_avg_pool1d(x.T[None], tokens)[0].T)


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"gate": "output"},
        {"multi_query": False},
        {"bridge_tokens": 0},
        {"gate": "output", "multi_query": False, "bridge_tokens": 0},
    ],
)
def test_gradients(switches):
    stack, config = make(**switches)
    x = torch.randn(2, 4, WIDTH, dtype=torch.float64, requires_grad=True)
    kv = torch.randn(2, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    mask_x = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    mask_kv = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    masks = AttentionMasks.build([4], mask_x, mask_kv[:, None], config.bridge_tokens)
    assert torch.autograd.gradcheck(lambda x, kv: masked_mean(stack(x, kv, masks), mask_x), (x, kv))
