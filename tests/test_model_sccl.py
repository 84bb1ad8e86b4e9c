"""The contrastive terms against equations (16) to (18) in loops and float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.model.sccl import inter_sample, intra_sample
from train.task import Task


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


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6))
def test_inter_of_several_labels_attracts_where_any_is_shared(seed, batch):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (batch, 3), generator=generator).float()
    sets = [{c for c in range(3) if row[c]} for row in labels.tolist()]
    alike = [[bool(a & b) for b in sets] for a in sets]
    task = Task("multilabel", ("x", "y", "z"), ("x", "y", "z"), 0.0, 1.0, "emotion")
    assert inter_sample(features, task.same_class(labels), 0.5).item() == pytest.approx(
        slow_inter(features, alike, 0.5), abs=1e-12
    )


def test_inter_leaves_out_rows_that_only_fill_up():
    features = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    alike = torch.ones(5, 5, dtype=torch.bool)
    real = torch.tensor([True, False, True, True, False])
    loss = inter_sample(features, alike, 0.5, real)
    assert loss.item() == pytest.approx(inter_sample(features[real], alike[:3, :3], 0.5).item())
    loss.backward()
    assert not features.grad[~real].any()


def test_both_terms_work_in_half_precision():
    specific, shared = torch.randn(2, 4, 3, 8)
    alike = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).bool()
    exact = intra_sample(specific, shared, 0.5) + inter_sample(shared[:, 0], alike, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = intra_sample(specific, shared, 0.5) + inter_sample(shared[:, 0], alike, 0.5)
    assert rough.item() == pytest.approx(exact.item(), abs=0.05)


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
