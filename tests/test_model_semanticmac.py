"""The model: its features, its total loss, its parameters for the optimiser."""

import math

import pytest
import torch

from cache import Packed
from tests.language_models import LAYERS, save_language_model
from tests.slow_interaction import interaction
from tests.small_model import KINDS, batch_of, make
from tests.test_model_sccl import slow_inter, slow_intra
from tests.test_model_sclg import slow_movement, slow_nearest
from train.config import make_config
from train.methods.semanticmac import PSEUDO, SUBTASKS
from train.model.language_model import LanguageModel, Tokens
from train.optimizer import lr_multiplier, parameter_groups


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return save_language_model("bert", tmp_path_factory.mktemp("bert"))


def unimodal(method, batch, row):
    """X_t, X_a, X_v of one utterance, ``[*, D]`` each, from the model's own parts."""
    ids = batch.text.ids[row][batch.text.mask[row]][None]
    hidden, _ = method.text(Tokens(ids, torch.ones_like(ids).bool(), None))
    x = [method.project_text(hidden[0])]
    for perceiver, packed in ((method.audio, batch.audio), (method.vision, batch.vision)):
        frames = packed.values.split(packed.lengths.tolist())[row]
        x.append(perceiver(Packed(frames, packed.lengths[row : row + 1]))[0])
    if method.modality is None:
        return x
    return [x[0] + method.modality[0], x[1] + method.modality[1], x[2] + method.modality[2]]


@pytest.mark.parametrize(
    "switch",
    [
        "seed=1",
        "sgfi.share=false",
        "sgfi.bridge_tokens=0",
        "sgfi.multi_query=false",
        "sgfi.modality_embedding=false",
    ],
)
def test_features_are_the_formula(language_model, switch):
    """Equations (10) to (12), one utterance and one modality after the other."""
    method, labels = make(language_model, switch)
    method = method.double().eval()
    index = torch.tensor([5, 1, 9])
    batch = batch_of(labels, index, extra=2, absent=(9,))
    with torch.no_grad():
        outputs = method(batch)
        for b in range(len(index)):
            alone = unimodal(method, batch, b)
            p, s = [], []
            for m in range(3):
                own = m if switch == "sgfi.share=false" else 0
                others = torch.cat([alone[n] for n in range(3) if n != m])
                for stacks, kv, pooled in (
                    (method.specific, alone[m], p),
                    (method.shared, others, s),
                ):
                    pooled.append(
                        interaction(stacks[own], method.config.sgfi, alone[m], kv).mean(0)
                    )
            torch.testing.assert_close(outputs.specific[b], torch.stack(p))
            torch.testing.assert_close(outputs.shared[b], torch.stack(s))
            expected = {
                "M": method.fuse_all(torch.cat(p + s)),
                "S": method.fuse_shared(torch.cat(s)),
                **dict(zip("tav", p, strict=True)),
            }
            for k in SUBTASKS:
                torch.testing.assert_close(outputs.features[k][b], expected[k])
                output = method.predictors[k](expected[k])
                torch.testing.assert_close(outputs.predictions[k][b], output)


def slow_loss(task, output, target):
    """Equation (21) for one utterance, in plain numbers."""
    if task == "regression":
        return abs(output[0] - target[0])
    if task == "classification":
        total = sum(math.exp(o) for o in output)
        return -sum(t * math.log(math.exp(o) / total) for o, t in zip(output, target, strict=True))
    shares = [1 / (1 + math.exp(-o)) for o in output]
    terms = [
        -t * math.log(p) - (1 - t) * math.log(1 - p) for p, t in zip(shares, target, strict=True)
    ]
    return sum(terms) / len(terms)


def slow_alike(task, labels, bins):
    """Return which utterances have the same class."""
    if task == "regression":
        sets = [{sum(border <= score for border in bins)} for (score,) in labels.tolist()]
    else:
        sets = [{c for c, has in enumerate(row) if has} for row in labels.tolist()]
    return [[bool(a & b) for b in sets] for a in sets]


@pytest.mark.parametrize("task", KINDS)
def test_total_loss_is_the_weighted_sum(language_model, task):
    weights = {"M": 1.5, "S": 0.5, "t": 0.25, "a": 2.0, "v": 3.0}
    sccl = {"alpha": 0.3, "beta": 0.7, "tau": 0.3, "tau_inter": 0.7, "bins": "[-1,1]"}
    overrides = [f"loss.weights.{k}={w}" for k, w in weights.items()]
    overrides += [f"sccl.{k}={value}" for k, value in sccl.items()]
    method, labels = make(language_model, *overrides, task=task)
    with torch.no_grad():
        method.pseudo.labels.uniform_(generator=torch.Generator().manual_seed(4))
    index = torch.tensor([4, 0, 7, 2, 9])
    batch = batch_of(labels, index)
    outputs = method.train()(batch)
    terms = method.loss(outputs, batch)
    expected = 0.0
    for k, weight in weights.items():
        target = labels[index] if k == "M" else method.pseudo.labels[PSEUDO.index(k), index]
        pairs = zip(outputs.predictions[k].tolist(), target.tolist(), strict=True)
        error = sum(slow_loss(task, *pair) for pair in pairs) / len(index)
        assert terms[f"task_{k}"].item() == pytest.approx(error, rel=1e-4)
        expected += weight * error
    specific, shared = outputs.specific.detach().double(), outputs.shared.detach().double()
    intra = slow_intra(specific, shared, 0.3)
    alike = slow_alike(task, labels[index], (-1, 1))
    inter = slow_inter(outputs.features["M"].detach().double(), alike, 0.7)
    assert terms["intra"].item() == pytest.approx(intra, rel=1e-4)
    assert terms["inter"].item() == pytest.approx(inter, rel=1e-4)
    expected += 0.3 * intra + 0.7 * inter
    assert terms["total"].item() == pytest.approx(expected, rel=1e-4)
    for k in PSEUDO:
        kept = method.pseudo.features[PSEUDO.index(k), index]
        assert torch.equal(kept, outputs.features[k].detach())


def test_evaluation_needs_no_pseudo_labels(language_model):
    method, labels = make(language_model)
    del method.pseudo
    batch = batch_of(labels, torch.arange(4))
    assert set(method.eval()(batch).predictions) == {"M", *PSEUDO}


@pytest.mark.parametrize(("reduction", "momentum"), [("sum", False), ("mean", True)])
@pytest.mark.parametrize("task", KINDS)
def test_pseudo_labels_move_as_configured(language_model, task, reduction, momentum):
    """Equations (13) to (15) on the features of the epoch, clamped to the range."""
    keys = [f"sclg.reduction={reduction}", f"sclg.momentum={momentum}", "sclg.sigma=0.3"]
    method, labels = make(language_model, *keys, task=task)
    batch = batch_of(labels, torch.arange(len(labels)))
    with torch.no_grad():
        outputs = method.train()(batch)
        method.loss(outputs, batch)
    method.end_epoch(2)
    truth, (low, high) = labels.double(), (-3, 3) if task == "regression" else (0, 1)
    for k, moved in zip(PSEUDO, method.pseudo.labels, strict=True):
        neighbours = slow_nearest(outputs.features[k].double(), 3)
        expected = truth + slow_movement(truth, neighbours, 0.3, reduction)
        if momentum:  # after epoch 2: a third of the old label, which is the truth
            expected = truth / 3 + 2 / 3 * expected
        clamped = expected.clamp(low, high)
        assert momentum or not torch.equal(clamped, expected)  # the bound has something to do
        torch.testing.assert_close(moved.double(), clamped, rtol=1e-4, atol=1e-5)


def test_frozen_language_model_stays_in_evaluation_mode(language_model):
    model = LanguageModel(language_model, "none")
    model.train()
    assert not model.encoder.training
    assert not any(p.requires_grad for p in model.parameters())
    last = LanguageModel(language_model, 1)
    learning = {name for name, p in last.named_parameters() if p.requires_grad}
    assert learning
    assert all(name.startswith("encoder.encoder.layer.2.") for name in learning)
    with pytest.raises(ValueError, match=f"has {LAYERS} layers"):
        LanguageModel(language_model, LAYERS + 1)


def test_groups_of_the_optimiser(language_model):
    method, _ = make(language_model, "optim.lr=0.2", "optim.lr_text=0.1", "optim.weight_decay=0.3")
    groups = parameter_groups(method, method.config.optim)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in groups) == len(list(method.parameters()))
    for name, wanted in {
        "text.encoder.encoder.layer.0.output.dense.weight": (0.1, 0.3),
        "text.encoder.encoder.layer.0.output.dense.bias": (0.1, 0.0),
        "text.encoder.encoder.layer.0.output.LayerNorm.weight": (0.1, 0.0),
        "text.encoder.embeddings.word_embeddings.weight": (0.1, 0.0),
        "audio.project.weight": (0.2, 0.3),
        "audio.tokens": (0.2, 0.0),
        "audio.frame_embedding": (0.2, 0.0),
        "modality": (0.2, 0.0),
        "specific.0.layers.0.norm_ffn.weight": (0.2, 0.0),
        "predictors.M.0.weight": (0.2, 0.3),
    }.items():
        assert found[id(method.get_parameter(name))] == wanted, name


def test_rates():
    config = make_config(None, ["train.epochs=3", "optim.schedule=cosine"])
    factors = [lr_multiplier(step, 4, config) for step in range(13)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.5)
    assert factors[12] == pytest.approx(0.0)
    constant = make_config(None, ["train.epochs=3", "optim.warmup_epochs=0"])
    assert [lr_multiplier(step, 4, constant) for step in range(12)] == [1.0] * 12
