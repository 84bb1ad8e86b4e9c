"""The contrastive terms against equations (16) to (18) in loops and float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.sccl import inter_sample, intra_sample


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def slow_intra(specific, shared, tau):
    losses = []
    for p, s in zip(specific, shared, strict=True):
        positive = negative = 0.0
        for m in range(3):
            negative += math.exp(cosine(s[m], p[m]) / tau)
            for n in range(3):
                if m != n:
                    positive += math.exp(cosine(s[m], s[n]) / tau)
                    negative += math.exp(cosine(p[m], p[n]) / tau)
        losses.append(-math.log(positive / (positive + negative)))
    return sum(losses) / len(losses)


def slow_inter(features, alike, tau):
    losses = []
    for i in range(len(features)):
        others = [a for a in range(len(features)) if a != i]
        bottom = sum(math.exp(cosine(features[i], features[a]) / tau) for a in others)
        positive = [p for p in others if alike[i][p]]
        logs = [
            math.log(math.exp(cosine(features[i], features[p]) / tau) / bottom) for p in positive
        ]
        losses.append(-sum(logs) / len(logs) if logs else 0.0)
    return sum(losses) / len(losses)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.floats(0.1, 2))
def test_intra_is_the_formula(seed, batch, tau):
    generator = torch.Generator().manual_seed(seed)
    specific, shared = torch.randn(2, batch, 3, 4, generator=generator)
    assert intra_sample(specific, shared, tau).item() == pytest.approx(
        slow_intra(specific.double(), shared.double(), tau), rel=1e-4
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6), st.floats(0.1, 2))
def test_inter_is_the_formula(seed, batch, tau):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, 4, generator=generator)
    alike = torch.rand(batch, batch, generator=generator) > 0.5
    alike = alike | alike.T
    assert inter_sample(features, alike, tau).item() == pytest.approx(
        slow_inter(features.double(), alike, tau), rel=1e-4, abs=1e-6
    )


def test_without_positives_nothing_is_added_and_no_gradient_is_nan():
    for batch in (1, 3):
        features = torch.randn(batch, 4, requires_grad=True)
        loss = inter_sample(features, torch.eye(batch).bool(), 0.5)
        loss.backward()
        assert loss.item() == 0.0
        assert features.grad.isfinite().all()


def test_terms_fall_where_they_should():
    s = torch.eye(4)[:1].expand(3, 4)[None]
    p = torch.eye(4)[1:][None]
    assert intra_sample(p, s, 0.1) < 0.01 < intra_sample(s, p, 0.1)
    close, far = torch.tensor([[1.0, 0], [1, 0], [0, 1]]), torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    alike = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    assert inter_sample(close, alike, 0.1) < inter_sample(far, alike, 0.1)


def test_gradients():
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: intra_sample(x, y, 0.5), (x, y))
    alike = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    assert torch.autograd.gradcheck(lambda z: inter_sample(z, alike, 0.5), (x[0],))
