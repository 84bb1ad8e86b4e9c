"""The defining property of each method, against its formula implemented in another way."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cache import Packed
from manifests import Card
from tests.test_methods import batch_of, language_models, make, with_tokens
from train.config import make_config
from train.methods.lmf import LowRankFusion
from train.methods.mag import AdaptationGate
from train.methods.mfn import GatedMemory
from train.methods.misa import central_moment_discrepancy, difference, similarity
from train.methods.mmim import RIDGE, Gaussian, Memory, predictive_coding
from train.methods.mre import category_contrast, relevance_loss
from train.methods.mult import Transformer, positions
from train.methods.self_mm import UnimodalLabels, relative_distance, shift
from train.methods.tfn import outer_product
from train.model.frames import Frames, LastState, align, pool_to_length
from train.model.sgfi import pooling_weights
from train.task import Task

__all__ = ["language_models"]  # a fixture


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# What the methods make of sequences.


def test_aligning_averages_the_frames_of_each_span():
    x = torch.tensor([[[1.0], [2.0], [3.0], [99.0]], [[5.0], [99.0], [99.0], [99.0]]])
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    target = torch.tensor([[False, True, True], [True, True, True]])
    expected = [[[0.0], [1.5], [2.5]], [[5.0], [5.0], [5.0]]]  # 3 frames, 2 positions: one shared
    assert align(x, mask, target).tolist() == expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_steps_are_pooled_like_bridge_tokens(lengths, steps):
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    x = random(len(lengths), 9, 2)
    torch.testing.assert_close(pool_to_length(x, mask, steps), pooling_weights(mask, steps) @ x)


@pytest.mark.parametrize("sides", [(0, 3), (3, 0)])
@torch.no_grad()
def test_last_state_is_that_of_the_bare_sequence(sides):
    read = LastState(3, 4, layers=2, bidirectional=True)
    x, longer = random(1, 5, 3), random(1, 8, 3, seed=1)
    padded = nn.functional.pad(x, (0, 0, *sides), value=7.0)
    mask = nn.functional.pad(torch.ones(1, 5, dtype=torch.bool), sides)
    both = read(torch.cat([padded, longer]), torch.cat([mask, torch.ones_like(mask)]))
    _, (state, _) = read.lstm(x)
    torch.testing.assert_close(both[0], state.flatten())
    assert both.shape == (2, read.width) == (2, 16)


def test_frames_are_chosen_as_for_the_perceiver():
    rows = Packed(random(7, 2).half(), torch.tensor([6, 0, 1]))
    for keys, lengths in (([], [6, 1, 1]), (["perceiver.frames=3"], [3, 1, 3])):
        frames = Frames(2, make_config(None, ["perceiver.max_frames=6", *keys]))
        x, mask = frames(rows)
        assert mask.sum(1).tolist() == lengths
        assert torch.equal(x[1, 0], frames.missing)


# TFN and LMF.


def test_tensor_fusion_is_the_outer_product():
    z = random(2, 3), random(2, 4, seed=1), random(2, 5, seed=2)
    ones = [torch.cat([x, torch.ones(2, 1)], 1) for x in z]
    tensor = outer_product(*z)
    torch.testing.assert_close(tensor, torch.einsum("bi,bj,bk->bijk", *ones))
    torch.testing.assert_close(tensor[:, :3, -1, -1], z[0])  # a modality alone is in it
    torch.testing.assert_close(tensor[:, -1, 1, 2], z[1][:, 1] * z[2][:, 2])  # and each pair


@torch.no_grad()
def test_low_rank_fusion_of_full_rank_is_tensor_fusion():
    sizes, width = (2, 3, 4), 5
    i, j, k = (size + 1 for size in sizes)
    weight = random(i, j, k, width)
    # One factor triple per pair of places of the first two modalities: rank i j is full.
    fusion = LowRankFusion(sizes, i * j, width)
    first, second = torch.cartesian_prod(torch.arange(i), torch.arange(j)).T
    fusion.factors[0].copy_(torch.eye(i)[first][..., None].expand(-1, -1, width))
    fusion.factors[1].copy_(torch.eye(j)[second][..., None].expand(-1, -1, width))
    fusion.factors[2].copy_(weight[first, second])
    fusion.bias.copy_(random(width, seed=1))
    z = [random(6, size, seed=size) for size in sizes]
    whole = nn.functional.linear(outer_product(*z).flatten(1), weight.flatten(0, 2).T, fusion.bias)
    torch.testing.assert_close(fusion(z), whole)


# MISA.


def test_difference_vanishes_for_orthogonal_spaces():
    t = torch.tensor([1.0, -1.0]).repeat(4)
    a = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(2)
    v = torch.tensor([1.0] * 4 + [-1.0] * 4)
    private, apart = torch.stack([t, a, v], 1)[..., None], (t * a * v)[:, None, None]
    assert difference(5 * private + 3, apart.expand(-1, 3, -1)) == 0
    # the shared space is text's own: (t . t)^2 = 64, and nothing in common with audio's, vision's
    assert difference(private, 2 * t[:, None, None].expand(-1, 3, -1)) == 64


def test_difference_by_hand():
    private, shared = random(6, 3, 4).double(), random(6, 3, 4, seed=1).double()
    p, s = ((x - x.mean(0)).numpy() for x in (private, shared))
    p, s = (x / np.linalg.norm(x, axis=2, keepdims=True) for x in (p, s))
    pairs = [(s[:, m], p[:, m]) for m in range(3)]
    pairs += [(p[:, 0], p[:, 1]), (p[:, 0], p[:, 2]), (p[:, 1], p[:, 2])]
    expected = sum(np.linalg.norm(x.T @ y, "fro") ** 2 for x, y in pairs) / 4**2
    assert difference(private, shared).item() == pytest.approx(expected)


def test_moments_tell_distributions_apart():
    x = torch.rand(64, 3, generator=torch.Generator().manual_seed(0))
    assert central_moment_discrepancy(x, x[torch.randperm(64)], 5).item() == pytest.approx(
        0, abs=1e-6
    )
    moved = central_moment_discrepancy(x, x + 0.25, 5)
    assert moved.item() == pytest.approx(0.25 * 3**0.5, abs=1e-5)  # the means alone
    y = x.numpy().copy()
    y[:, 0] = 0.5
    orders = [
        np.linalg.norm(((x.numpy() - x.numpy().mean(0)) ** k - (y - y.mean(0)) ** k).mean(0))
        for k in (2, 3)
    ]
    means = np.linalg.norm(x.numpy().mean(0) - y.mean(0))
    found = central_moment_discrepancy(x, torch.from_numpy(y), 3)
    assert found.item() == pytest.approx(means + sum(orders), abs=1e-6)
    three = torch.stack([x, x, torch.from_numpy(y)], 1)
    assert similarity(three, 3).item() == pytest.approx(2 / 3 * found.item(), abs=1e-6)


# MAG.


@given(st.integers(0, 9999), st.floats(0.01, 2.0), st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_the_shift_is_never_longer_than_beta_times_the_state(seed, beta, scale):
    torch.manual_seed(seed)
    gate = AdaptationGate(6, 4, 3, beta, 0.0)
    z, a, v = torch.randn(2, 5, 6), scale * torch.randn(2, 5, 4), scale * torch.randn(2, 5, 3)
    moved, length_z = gate.shift(z, a, v), z.norm(dim=-1)
    assert (moved.norm(dim=-1) <= beta * length_z * (1 + 1e-4)).all()
    gate_a = (torch.cat([z, a], -1) @ gate.gate_audio.weight.T + gate.gate_audio.bias).relu()
    gate_v = (torch.cat([z, v], -1) @ gate.gate_vision.weight.T + gate.gate_vision.bias).relu()
    h = gate_a * (a @ gate.audio.weight.T) + gate_v * (v @ gate.vision.weight.T + gate.vision.bias)
    alpha = (beta * length_z / h.norm(dim=-1)).clamp(max=1)
    torch.testing.assert_close(moved, alpha[..., None] * h, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_the_gate_is_inside_a_trained_language_model_only(language_models):
    source = ["text.source=model", f"text.model={language_models['bert']}"]
    batch = with_tokens(batch_of(torch.arange(4)))
    outcomes = []
    for keys in (["options.layer=0"], ["options.layer=2"], ["text.trainable=none"]):
        method = make("mag", *source, *keys).eval()
        seen = []
        method.gate.register_forward_hook(lambda _, inputs, out, seen=seen: seen.append(inputs[0]))
        layers = method.text.encoder(batch.text.ids, output_hidden_states=True).hidden_states
        method(batch)
        (state,) = seen
        at = {"options.layer=0": 0, "options.layer=2": 2, "text.trainable=none": 3}[keys[0]]
        torch.testing.assert_close(state, layers[at])
        after = method.text.encoder(batch.text.ids, output_hidden_states=True).hidden_states
        assert all(map(torch.equal, after, layers)), "the language model is left as it was"
        outcomes.append(method(batch).predictions["M"])
    assert not torch.allclose(outcomes[0], outcomes[1])
    with pytest.raises(ValueError, match="layers 0 to 2"):
        make("mag", *source, "options.layer=3")


# Self-MM.


def test_unimodal_labels_by_hand():
    """Four utterances on a line; the positive centre of M is 3, the negative one -1."""
    features = torch.tensor([[2.0], [4.0], [-1.0], [1.0]])
    signed = torch.tensor([[2.0], [1.0], [-3.0], [0.0]])
    alpha = relative_distance(features, signed)
    # the first: D+ = (2-3)^2 = 1, D- = (2+1)^2 = 9, alpha = 8; the neutral one: D+ = D- = 4
    expected = [(9 - 1) / 1, (25 - 1) / 1, (0 - 16) / 16, 0.0]
    assert alpha[:, 0].tolist() == pytest.approx(expected)
    # y = 2, alpha_M = 8, alpha_s = 6: (6 - 8)/2 * (2 + 8)/8
    moved = shift(torch.tensor([[2.0]]), torch.tensor([[6.0]]), torch.tensor([[8.0]]))
    assert moved.item() == pytest.approx(-1.25)
    # which is the mean of the ratio's label 6/8 * 2 and the difference's label 2 + 6 - 8, less y
    assert moved.item() == pytest.approx((1.5 + 0.0) / 2 - 2)


def test_unimodal_labels_move_with_momentum():
    truth = torch.tensor([[2.0], [1.0], [-3.0], [0.0]])
    labels = UnimodalLabels(truth, 1, Task.from_card(Card("x", "x", "regression", range=[-3, 3])))
    features = {k: torch.tensor([[2.0], [4.0], [-1.0], [1.0]]) for k in ("M", "t", "a", "v")}
    features["a"] = torch.tensor([[-3.0], [1.0], [2.0], [1.0]])

    def pass_epoch(epoch):
        labels.collect(
            torch.tensor([2, 0, 1, 3]), {k: x[[2, 0, 1, 3]] for k, x in features.items()}
        )
        labels.update(epoch)

    pass_epoch(1)
    assert torch.equal(labels.labels, truth.expand(3, -1, -1))  # the first epoch moves nothing
    pass_epoch(2)
    assert torch.allclose(labels.labels[0], truth, atol=1e-5)  # text has M's features: delta is 0
    # audio's first utterance: centres (-3 + 1) / 2 and 2, D+ = 4, D- = 25; alpha_M = 8
    alpha = (25 - 4) / 4
    delta = (alpha - 8) / 2 * (2 + 8) / 8
    expected = 1 / 3 * 2 + 2 / 3 * (2 + delta)
    assert labels.labels[1, 0].item() == pytest.approx(expected, abs=1e-4)
    # By its own labels the second is now negative in audio: the positive centre is the first, -3,
    # alpha of the first is without bound, and its label moves to the end of the range.
    assert labels.labels[1, 1] < 0
    pass_epoch(3)
    expected = 2 / 4 * expected + 2 / 4 * 3
    assert labels.labels[1, 0].item() == pytest.approx(expected, abs=1e-4)


def test_unimodal_labels_of_classes_stay_probabilities():
    card = Card("x", "x", "classification", classes=["a", "b", "c"], metrics="emotion")
    truth = torch.eye(3)[[0, 1, 0, 1, 1, 0]]  # no utterance is of class c
    labels = UnimodalLabels(truth, 4, Task.from_card(card))
    for epoch in range(1, 5):
        features = {k: random(6, 4, seed=epoch + i) for i, k in enumerate(("M", "t", "a", "v"))}
        labels.collect(torch.arange(6), features)
        labels.update(epoch)
    assert labels.labels.min() >= 0
    assert labels.labels.max() <= 1
    assert not torch.allclose(labels.labels[0], truth)
    assert torch.equal(labels.labels[:, :, 2], torch.zeros(3, 6))


# MulT.


def test_a_crossmodal_transformer_never_looks_at_padding():
    transformer = Transformer(8, 2, 2, 0.0).eval()
    target, source = random(2, 3, 8), random(2, 5, 8, seed=1).requires_grad_()
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    out = transformer(target, source, mask)
    (gradient,) = torch.autograd.grad(out.square().sum(), source)
    assert gradient[~mask].abs().max() == 0
    assert (gradient[mask].abs().sum(1) > 0).all()
    bare = transformer(target[1:], source[1:, :2], mask[1:, :2])
    torch.testing.assert_close(out[1:], bare)


def test_six_directions_each_between_two_modalities():
    method = make("mult").eval()
    assert set(method.cross) == {"at", "vt", "ta", "va", "tv", "av"}
    seen = {}
    for name, stack in method.cross.items():
        stack.register_forward_hook(
            lambda _, inputs, out, name=name: seen.update({name: inputs[:2]})
        )
    method(batch_of(torch.arange(4)))
    x = {"t": seen["at"][0], "a": seen["ta"][0], "v": seen["tv"][0]}
    for (source, target), (query, key) in seen.items():
        assert torch.equal(query, x[target])
        assert torch.equal(key, x[source])


def test_positions_count_real_places_only():
    mask = torch.tensor([[True, True, True, False], [False, True, True, True]])
    place = positions(mask, 6)
    torch.testing.assert_close(place[0, :3], place[1, 1:])
    assert place[0, 1, 0].item() == pytest.approx(math.sin(1))
    assert place[0, 1, 3].item() == pytest.approx(math.cos(1))


# MFN.


def test_attention_spans_two_consecutive_memories():
    memory = GatedMemory(3, 4, 5, 0.0)
    before, now = random(2, 3), random(2, 3, seed=1)
    both = torch.cat([before, now], 1)
    weights = memory.attend(before, now) / both
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    (gradient,) = torch.autograd.grad(
        memory(before.requires_grad_(), now, random(2, 4)).sum(), before
    )
    assert gradient.abs().min() > 0
    attended = memory.attend(before, now)
    proposed, keep = memory.update(attended).tanh(), memory.retain(attended).sigmoid()
    expected = keep * random(2, 4) + memory.write(attended).sigmoid() * proposed
    torch.testing.assert_close(memory(before, now, random(2, 4)), expected)


def test_the_memory_reads_each_step_with_the_step_before():
    method = make("mfn").eval()
    calls = []
    method.memory.register_forward_hook(lambda _, inputs, out: calls.append((*inputs, out)))
    method(batch_of(torch.arange(3)))
    assert len(calls) == method.options.steps
    before, _, u, _ = calls[0]
    assert not before.any()
    assert not u.any()
    for (_, now, _, out), (before, _, u, _) in pairwise(calls):
        assert torch.equal(before, now)
        assert torch.equal(u, out)


# MMIM.


def test_the_bound_is_finite_and_decreases():
    method = make("mmim", "options.bound=1", "dropout=0").train()
    optimiser = torch.optim.Adam(method.parameters(), 3e-3)
    batch = batch_of(torch.arange(32))
    bounds = []
    for _ in range(25):
        terms = method.loss(method(batch), batch)
        bounds.append(terms["bound"].item())
        optimiser.zero_grad()
        terms["bound"].backward()
        optimiser.step()
    assert np.isfinite(bounds).all()
    assert bounds[-1] < bounds[1] - 1  # the first is of an empty memory
    assert min(bounds) == min(bounds[-5:])


def test_entropy_is_that_of_a_gaussian_per_group():
    memory = Memory({"a": 3}, 2, 8)
    h, member = random(10, 3), torch.eye(2)[torch.arange(10) % 2]
    both = [torch.cov(h[g::2].T) + RIDGE * torch.eye(3) for g in range(2)]
    gaussians = [torch.distributions.MultivariateNormal(torch.zeros(3), c) for c in both]
    constant = 3 / 2 * (1 + math.log(2 * math.pi))
    expected = sum(gaussian.entropy() - constant for gaussian in gaussians) / 2
    torch.testing.assert_close(memory.entropy("a", h, member), expected)
    memory.remember({"a": h}, member)  # a batch larger than the memory
    assert torch.equal(memory.a, h[:8])
    new = random(3, 3, seed=1)
    memory.remember({"a": new}, member[:3])
    assert torch.equal(memory.a, torch.cat([new, h[:5]]))
    lonely = Memory({"a": 3}, 2, 8).entropy("a", h[:1], member[:1])
    assert lonely == 0


def test_density_and_coding_reward_what_is_known():
    q, given_h, h = Gaussian(4, 3), random(6, 4), random(6, 3, seed=1)
    deviation = (q.log_variance(given_h) / 2).exp()
    normal = torch.distributions.Normal(q.mean(given_h), deviation)
    expected = normal.log_prob(h).sum(1).mean() + 3 / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(q(given_h, h), expected)
    assert predictive_coding(h, h) < predictive_coding(h, h.roll(1, 0))
    assert predictive_coding(h[:1], h[:1]) == 0


# MRE.


def test_relevance_follows_what_predicts_well():
    each = torch.tensor([[0.2, 1.0, 3.0], [2.0, 0.5, 0.1]])
    here = torch.tensor([[True, True, True], [True, False, True]])
    alpha = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.0, 0.4]])
    by_hand = 0.0
    for losses, weights, there in zip(each, alpha, here, strict=True):
        r = {m: math.exp(-losses[m] / 0.5) for m in range(3) if there[m]}
        r = {m: value / sum(r.values()) for m, value in r.items()}
        by_hand += sum(r[m] * losses[m] for m in r) + sum(
            r[m] * math.log(r[m] / weights[m]) for m in r
        )
    assert relevance_loss(each, alpha, here, 0.5).item() == pytest.approx(float(by_hand) / 2)


def test_category_contrast_by_hand():
    h, tau = random(3, 3, 4), 0.7
    alpha = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.0, 0.4], [0.1, 0.1, 0.8]])
    here = alpha > 0
    alike = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)
    z = nn.functional.normalize(h, dim=-1)
    places = [(i, m) for i in range(3) for m in range(3) if here[i, m]]
    by_hand = 0.0
    for i, m in places:
        others = {q: math.exp(z[i, m] @ z[q] / tau) for q in places if q != (i, m)}
        positives = [q for q in others if alike[i, q[0]] and q[1] != m]
        for p in positives:
            share = others[p] / sum(others.values())
            by_hand -= float(alpha[i, m]) / len(positives) * math.log(share)
    found = category_contrast(h, alpha, here, alike, tau)
    assert found.item() == pytest.approx(by_hand / 3, rel=1e-5)


def test_relevance_is_reported_and_absent_modalities_have_none():
    method = make("mre").eval()
    batch = batch_of(torch.arange(4), absent={(1, "audio"), (2, "text"), (2, "vision")})
    reported = method(batch).reported
    assert set(reported) == {"relevance_t", "relevance_a", "relevance_v"}
    torch.testing.assert_close(sum(reported.values()), torch.ones(4))
    assert reported["relevance_a"][1] == 0
    assert reported["relevance_a"][2] == 1
    outputs = method.train()(batch)
    weights = method.relevance[0].weight
    loss = method.loss(outputs, batch)
    (gradient,) = torch.autograd.grad(
        loss["contrast"], weights, allow_unused=True, retain_graph=True
    )
    assert gradient is None
    assert torch.autograd.grad(loss["rse"], weights)[0].any()
