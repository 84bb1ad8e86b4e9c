"""The Affective Perceiver against equations (3) and (4) in loops and float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import Packed
from train.config import PerceiverConfig
from train.model.frames import resample, subsample
from train.model.perceiver import AffectivePerceiver


def make(lengths, width=8, frame_width=5, **switches):
    torch.manual_seed(0)
    config = PerceiverConfig(layers=2, tokens=3, heads=2, max_frames=9, **switches)
    perceiver = AffectivePerceiver(frame_width, width, 0.1, config).double().eval()
    for parameter in perceiver.parameters():  # away from zero and one, so that nothing can hide
        parameter.data += 0.1 * torch.randn_like(parameter)
    values = torch.randn(sum(lengths), frame_width, dtype=torch.float64)
    return perceiver, Packed(values, torch.tensor(lengths))


def norm(module, x):
    if not isinstance(module, torch.nn.LayerNorm):
        return x
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return (x - mean) / torch.sqrt(variance + module.eps) * module.weight + module.bias


def attend(module, query, keys):
    """Multi-head attention of one query vector to a list of vectors, one head after the other."""
    q = module.query(query)
    kv = [module.key_value(key) for key in keys]
    width, d = len(query), len(query) // module.heads
    heads = []
    for h in range(module.heads):
        part = slice(h * d, (h + 1) * d)
        scores = [float(q[part] @ x[:width][part]) / math.sqrt(d) for x in kv]
        weights = [math.exp(score) for score in scores]
        heads.append(
            sum(w / sum(weights) * x[width:][part] for w, x in zip(weights, kv, strict=True))
        )
    return module.out(torch.cat(heads))


def reference(perceiver, frames):
    """One utterance: a list of T frame vectors to N tokens."""
    e = [perceiver.project(frame) for frame in frames]
    if perceiver.frame_embedding is not None:
        e = [x + perceiver.frame_embedding[t] for t, x in enumerate(e)]
    e = e or [perceiver.missing]
    z = list(perceiver.tokens)
    for layer in perceiver.layers:
        keys = [norm(layer.norm_frames, x) for x in e]
        keep = 1 if layer.residual else 0
        z = [keep * x + attend(layer.attention, norm(layer.norm_tokens, x), keys) for x in z]
        z = [keep * x + layer.ffn(norm(layer.norm_ffn, x)) for x in z]
    return torch.stack(z)


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"frame_embedding": False},
        {"layer_norm": False},
        {"residual": False},
        {"missing": "zero"},
    ],
)
def test_perceiver_is_the_formula(switches):
    lengths = [4, 0, 1, 9]
    perceiver, packed = make(lengths, **switches)
    with torch.no_grad():
        result = perceiver(packed)
        for row, frames in zip(result, packed.values.split(lengths), strict=True):
            torch.testing.assert_close(row, reference(perceiver, list(frames)))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.randoms())
def test_batch_order_and_padding_do_not_matter(lengths, random):
    perceiver, packed = make(lengths)
    parts = list(packed.values.split(lengths))
    order = list(range(len(lengths)))
    random.shuffle(order)
    shuffled = Packed(torch.cat([parts[i] for i in order]), packed.lengths[order])
    with torch.no_grad():
        together = perceiver(packed)
        torch.testing.assert_close(perceiver(shuffled), together[order])
        for i, part in enumerate(parts):
            alone = perceiver(Packed(part, packed.lengths[i : i + 1]))
            torch.testing.assert_close(alone[0], together[i])


def test_order_of_frames_matters_only_with_frame_embedding():
    for frame_embedding in (True, False):
        perceiver, packed = make([6], frame_embedding=frame_embedding)
        turned = Packed(packed.values.flip(0), packed.lengths)
        with torch.no_grad():
            same = torch.allclose(perceiver(packed), perceiver(turned))
        assert same != frame_embedding


def test_missing_embedding_learns_only_when_asked():
    for missing in ("learned", "zero"):
        perceiver, packed = make([0, 3], missing=missing)
        perceiver(packed).sum().backward()
        assert (perceiver.missing.grad is not None) == (missing == "learned")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(1, 12))
def test_frames_are_thinned_out_and_resampled_evenly(lengths, count):
    names = [float(100 * i + t) for i, length in enumerate(lengths) for t in range(length)]
    frames = Packed(torch.tensor(names)[:, None], torch.tensor(lengths))
    short, fixed = subsample(frames, count), resample(frames, count)
    for i, length in enumerate(lengths):
        spread = [float(100 * i + t * length // count) for t in range(count)]
        whole = [float(100 * i + t) for t in range(length)]
        assert of_utterance(short, i) == (whole if length <= count else spread)
        assert of_utterance(fixed, i) == (spread if length else [])


def of_utterance(frames, i):
    return frames.values.split(frames.lengths.tolist())[i][:, 0].tolist()


@pytest.mark.parametrize("frames", [2, 5])
def test_a_fixed_number_of_frames_is_the_formula_on_those(frames):
    lengths = [4, 0, 1, 9]
    perceiver, packed = make(lengths, frames=frames)
    with torch.no_grad():
        result = perceiver(packed)
        for row, each in zip(result, packed.values.split(lengths), strict=True):
            chosen = [each[t * len(each) // frames] for t in range(frames) if len(each)]
            torch.testing.assert_close(row, reference(perceiver, chosen))


def test_gradients():
    perceiver, packed = make([2, 0, 1], width=4, frame_width=2)
    values = packed.values.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: perceiver(Packed(x, packed.lengths)), (values,), fast_mode=True
    )
    parameters = tuple(p for p in perceiver.parameters() if p.ndim == 1)[:4]
    assert torch.autograd.gradcheck(
        lambda *_: perceiver(packed).sum(0), (*parameters, values), fast_mode=True
    )
