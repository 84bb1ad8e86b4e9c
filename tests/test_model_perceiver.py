"""The Affective Perceiver against equations (3) and (4) in loops and float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import Packed
from train.config import PerceiverConfig
from train.perceiver import AffectivePerceiver, subsample_evenly


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


@given(st.integers(1, 40), st.integers(1, 12))
def test_subsample_is_even_and_complete(length, frames):
    x = torch.arange(length, dtype=torch.float32)[None, :, None]
    kept, mask = subsample_evenly(
        torch.nn.functional.pad(x, (0, 0, 0, max(0, frames - length))),
        torch.arange(max(length, frames))[None] < length,
        frames,
    )
    expected = (
        list(range(length)) if length <= frames else [i * length // frames for i in range(frames)]
    )
    assert kept[0, mask[0], 0].tolist() == expected
