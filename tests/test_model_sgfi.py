"""Gated bridge attention against equations (6) to (9) in loops and float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import SGFIConfig
from train.sgfi import GatedInteraction, masked_mean, pooling_weights

WIDTH, HEADS = 8, 2


def make(**switches):
    torch.manual_seed(0)
    config = SGFIConfig(layers=2, heads=HEADS, **({"bridge_tokens": 3} | switches))
    stack = GatedInteraction(WIDTH, 0.1, config).double().eval()
    for parameter in stack.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return stack, config


def softmax_mix(query, keys, values):
    weights = [math.exp(float(query @ key) / math.sqrt(len(query))) for key in keys]
    return sum(w / sum(weights) * v for w, v in zip(weights, values, strict=True))


def reference(stack, config, x, kv):
    """One utterance without padding: ``x [L, D]``, ``kv [S, D]``."""
    d = WIDTH // HEADS
    for layer in stack.layers:
        q, pairs = x @ layer.query.weight.T, kv @ layer.key_value.weight.T
        keys, values = pairs.chunk(2, dim=1)
        heads = []
        for h in range(HEADS):
            part = slice(h * d, (h + 1) * d)
            k, v = (keys, values) if config.multi_query else (keys[:, part], values[:, part])
            q_h = q[:, part]
            if config.bridge_tokens:
                bridge = F.adaptive_avg_pool1d(q_h.T[None], config.bridge_tokens)[0].T  # (7)
                gathered = [softmax_mix(b, k, v) for b in bridge]
                heads.append(torch.stack([softmax_mix(row, bridge, gathered) for row in q_h]))
            else:
                heads.append(torch.stack([softmax_mix(row, k, v) for row in q_h]))
        o = torch.cat(heads, dim=1) @ layer.out.weight.T
        if config.gate == "query":
            o = torch.relu(layer.gate(layer.norm_gate(x))) * o
        elif config.gate == "output":
            o = torch.relu(o @ layer.gate.weight.T)
        x = x + o
        x = x + layer.ffn(layer.norm_ffn(x))
    return x


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
    noise = torch.randn(length, WIDTH, dtype=torch.float64)  # what stands in padding is no matter
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
        result = stack(x, mask_x, kv, mask_kv)
        for i, (query, key) in enumerate(zip(queries, keys, strict=True)):
            expected = reference(stack, config, query, key)
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


def test_gradients():
    stack, _ = make()
    x = torch.randn(2, 4, WIDTH, dtype=torch.float64, requires_grad=True)
    kv = torch.randn(2, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    mask_x = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    mask_kv = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    assert torch.autograd.gradcheck(
        lambda x, kv: masked_mean(stack(x, mask_x, kv, mask_kv), mask_x), (x, kv)
    )
