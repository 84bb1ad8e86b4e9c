"""The switches of the model: each changes one thing, and everything else still trains."""

import pytest
import torch
from torch import nn

from tests.language_models import save_language_model
from tests.small_model import KINDS, N, batch_of, make
from train.study.ablations import ABLATIONS

TERMS = {"task_M", "task_S", "task_t", "task_a", "task_v", "intra", "inter", "total"}
PSEUDO_TERMS = {"task_S", "task_t", "task_a", "task_v"}

# What a small model (width 16, 4 heads, 2 layers per stack) is made of, and what an ablation
# changes about that.
FULL = {
    "terms": TERMS,
    "frame_embedding": (True, True),
    "perceiver_norms": (6, 6),
    "perceiver_residual": (True, True),
    "frames": (None, None),
    "modality_embedding": True,
    "key_value_rows": 2 * 4,
    "bridge_tokens": 4,
    "gates": 4,
    "momentum": True,
    "pseudo_labels_move": True,
}
CHANGES = {
    "full": {},
    "no-frame-embedding": {"frame_embedding": (False, False)},
    "no-layer-norm": {"perceiver_norms": (0, 0)},
    "no-residual": {"perceiver_residual": (False, False)},
    "no-modality-embedding": {"modality_embedding": False},
    "full-heads": {"key_value_rows": 2 * 16},
    "no-bridge": {"bridge_tokens": 0},
    "no-gate": {"gates": 0},
    "no-momentum": {"momentum": False},
    "true-labels": {"pseudo_labels_move": False},
    "no-multi-task": {"terms": TERMS - PSEUDO_TERMS},
    "no-intra": {"terms": TERMS - {"intra"}},
    "no-inter": {"terms": TERMS - {"inter"}},
    "no-contrast": {"terms": TERMS - {"intra", "inter"}},
    "5-frames": {"frames": (5, 5)},
    "100-frames": {"frames": (100, 100)},
}


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return save_language_model("bert", tmp_path_factory.mktemp("bert"))


def anatomy(method):
    """Return the parts of the model, read from its modules."""
    perceivers = method.audio, method.vision
    gated = [layer for stack in (*method.specific, *method.shared) for layer in stack.layers]
    (rows,) = {layer.key_value.out_features for layer in gated}
    return {
        "frame_embedding": tuple(u.frame_embedding is not None for u in perceivers),
        "perceiver_norms": tuple(
            sum(isinstance(part, nn.LayerNorm) for part in u.modules()) for u in perceivers
        ),
        "perceiver_residual": tuple(all(y.residual for y in u.layers) for u in perceivers),
        "frames": tuple(u.frames for u in perceivers),
        "modality_embedding": method.modality is not None,
        "key_value_rows": rows,
        "gates": sum(hasattr(layer, "gate") and layer.gated == "query" for layer in gated),
        "momentum": method.pseudo.config.momentum,
    }


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_is_one_key_changes_one_thing_and_trains(language_model, name):
    key, _ = ABLATIONS[name]
    assert key.count("=") == (name != "full")
    method, labels = make(language_model, *filter(None, [key]))
    batch = batch_of(labels, torch.arange(N))
    sights = []
    for stack in (method.specific[0], method.shared[0]):
        stack.register_forward_pre_hook(lambda _, given: sights.append(given[2]))
    before = method.fuse_all.weight.clone()
    optimiser = torch.optim.AdamW(method.parameters(), 1e-3)
    for epoch in (1, 2):
        terms = method.train().loss(method(batch), batch)
        assert terms["total"].isfinite()
        terms["total"].backward()
        optimiser.step()
        method.end_epoch(epoch)
    assert not torch.equal(method.fuse_all.weight, before)
    (bridge,) = {0 if sight.pool is None else sight.pool.shape[1] // 3 for sight in sights}
    found = anatomy(method) | {
        "terms": set(terms),
        "bridge_tokens": bridge,
        "pseudo_labels_move": all((k != labels).any() for k in method.pseudo.labels),
    }
    assert found == FULL | CHANGES[name]


@pytest.mark.parametrize(
    ("switches", "gone"),
    [
        (["sccl.alpha=0"], {"intra"}),
        (["sccl.beta=0"], {"inter"}),
        (["sccl.enabled=false"], {"intra", "inter"}),
        (["loss.multi_task=false"], PSEUDO_TERMS),
        (["loss.multi_task=false", "sccl.alpha=0", "sccl.beta=0"], TERMS - {"task_M", "total"}),
    ],
)
def test_switches_remove_their_terms_from_the_total(language_model, switches, gone):
    method, labels = make(language_model, "sccl.alpha=0.3", "sccl.beta=0.7", *switches)
    batch = batch_of(labels, torch.arange(4))
    terms = method.train().loss(method(batch), batch)
    assert set(terms) == TERMS - gone
    weights = {"intra": 0.3, "inter": 0.7, "total": 0.0}
    rest = sum(weights.get(name, 1.0) * term.item() for name, term in terms.items())
    assert terms["total"].item() == pytest.approx(rest)


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize(
    "switch",
    [
        "seed=1",
        "sgfi.share=false",
        "sgfi.gate=output",
        "sgfi.gate=none",
        "sgfi.bridge_tokens=0",
        "sgfi.multi_query=false",
        "sgfi.modality_embedding=false",
        "perceiver.frame_embedding=false",
        "perceiver.layer_norm=false",
        "perceiver.residual=false",
        "perceiver.frames=5",
        "sclg.enabled=false",
        "text.trainable=none",
        "text.trainable=1",
    ],
)
def test_every_switch_gives_every_trainable_weight_a_gradient(language_model, switch, task):
    method, labels = make(language_model, switch, "perceiver.max_frames=6", task=task)
    batch = batch_of(labels, torch.arange(N), absent=(3,))
    method.train()
    method.loss(method(batch), batch)["total"].backward()
    silent = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []
    method.end_epoch(3)
    assert method.pseudo.labels.isfinite().all()
