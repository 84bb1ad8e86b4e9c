"""The whole model: its total loss, its invariances, its switches."""

import math

import pytest
import torch
from transformers import BertConfig, BertModel

from cache import Packed
from manifests import Card
from tests.slow_interaction import interaction
from train.ablations import ABLATIONS
from train.config import make_config
from train.data import Batch
from train.methods import build_method
from train.methods.semanticmac import PSEUDO, SUBTASKS
from train.optimiser import parameter_groups, rate_factor
from train.task import Task
from train.text import LanguageModel, Tokens

N, VOCABULARY = 12, 30


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=VOCABULARY, num_hidden_layers=3, **sizes)).save_pretrained(
        folder
    )
    return str(folder)


def make(language_model, *overrides, task="regression"):
    small = ["width=16", "sclg.knn=3", "perceiver.tokens=4", f"text.model={language_model}"]
    config = make_config(None, [*small, *overrides])
    cards = {
        "regression": Card("x", "x", "regression", range=[-3, 3]),
        "classification": Card("x", "x", "classification", classes=["a", "b"], metrics="emotion"),
        "multilabel": Card("x", "x", "multilabel", ["a", "b"], ["a", "b"]),
    }
    target = Task.of(cards[task], config.loss.regression, tuple(config.sccl.bins))
    torch.manual_seed(1)
    method = build_method(config, target, {"audio": 5, "vision": 7})
    generator = torch.Generator().manual_seed(2)
    labels = torch.randn(N, 1, generator=generator).clamp(-3, 3)
    if task != "regression":
        labels = torch.eye(2)[torch.arange(N) % 2]
    method.begin(labels)
    return method, labels


def batch_of(labels, index, extra=0, absent=()):
    """The utterances at ``index`` of a fixed data set, with ``extra`` padded text positions."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(2, 7, (N,), generator=generator)
    ids = torch.randint(1, VOCABULARY, (N, 7), generator=generator)
    audio = [torch.randn(int(n), 5, generator=generator) for n in lengths]
    vision = [torch.randn(int(n), 7, generator=generator) for n in lengths]
    audio = [x[:0] if i in absent else x for i, x in enumerate(audio)]
    longest = int(lengths[index].max()) + extra
    mask = torch.arange(longest) < lengths[index, None]
    tokens = torch.nn.functional.pad(ids, (0, extra))[index, :longest].where(mask, 0)

    def pack(rows):
        chosen = [rows[i] for i in index]
        return Packed(torch.cat(chosen).half(), torch.tensor([len(x) for x in chosen]))

    return Batch(index, Tokens(tokens, mask, None), pack(audio), pack(vision), labels[index])


@pytest.mark.parametrize(
    "switch",
    ["seed=1", "sgfi.share=false", "sgfi.bridge_tokens=0", "sgfi.multi_query=false"],
)
def test_features_are_the_formula(language_model, switch):
    """Equations (10) to (12), one utterance and one modality after the other."""
    method, labels = make(language_model, switch)
    method = method.double().eval()
    index = torch.tensor([5, 1, 9])
    batch = batch_of(labels, index, extra=2, absent=(9,))
    with torch.no_grad():
        outputs = method(batch)
        x, mask = method._unimodal(batch)
        for b in range(len(index)):
            alone = [x_m[b][mask_m[b]] for x_m, mask_m in zip(x, mask, strict=True)]
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
                said = method.predictors[k](expected[k])
                torch.testing.assert_close(outputs.predictions[k][b], said)


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


@pytest.mark.parametrize("task", ["regression", "classification", "multilabel"])
def test_total_loss_is_the_weighted_sum(language_model, task):
    weights = {"M": 1.0, "S": 0.5, "t": 0.25, "a": 2.0, "v": 3.0}
    overrides = [f"loss.weights.{k}={w}" for k, w in weights.items()]
    method, labels = make(language_model, "sccl.alpha=0.3", "sccl.beta=0.7", *overrides, task=task)
    with torch.no_grad():
        method.pseudo.labels.uniform_()
    index = torch.tensor([4, 0, 7, 2])
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
    expected += 0.3 * terms["intra"].item() + 0.7 * terms["inter"].item()
    assert terms["total"].item() == pytest.approx(expected, rel=1e-4)
    for k in PSEUDO:
        kept = method.pseudo.features[PSEUDO.index(k), index]
        assert torch.equal(kept, outputs.features[k].detach())


def test_switches_remove_their_terms(language_model):
    method, labels = make(language_model, "loss.multi_task=false", "sccl.alpha=0", "sccl.beta=0")
    batch = batch_of(labels, torch.arange(4))
    assert set(method.loss(method(batch), batch)) == {"task_M", "total"}


def test_evaluation_needs_no_pseudo_labels(language_model):
    method, labels = make(language_model)
    del method.pseudo
    batch = batch_of(labels, torch.arange(4))
    method.eval()
    assert set(method.loss(method(batch), batch)) == {"task_M", "total"}


@pytest.mark.parametrize("task", ["regression", "classification", "multilabel"])
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
def test_every_switch_trains_every_weight_that_shall_learn(language_model, switch, task):
    method, labels = make(language_model, switch, "perceiver.max_frames=6", task=task)
    batch = batch_of(labels, torch.arange(N), absent=(3,))
    method.train()
    method.loss(method(batch), batch)["total"].backward()
    silent = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []
    method.end_epoch(3)
    assert method.pseudo.labels.isfinite().all()


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_is_one_key_and_trains(language_model, name):
    key, _ = ABLATIONS[name]
    method, labels = make(language_model, *filter(None, [key]))
    assert key.count("=") == (name != "full")
    batch = batch_of(labels, torch.arange(N))
    before = method.fuse_all.weight.clone()
    optimiser = torch.optim.AdamW(method.parameters(), 1e-3)
    for epoch in (1, 2):
        method.train()
        total = method.loss(method(batch), batch)["total"]
        assert total.isfinite()
        total.backward()
        optimiser.step()
        method.end_epoch(epoch)
    assert not torch.equal(method.fuse_all.weight, before)
    assert (method.pseudo.labels[0] != labels).any() == (name != "true-labels")


def test_padding_order_and_company_do_not_matter(language_model):
    method, labels = make(language_model)
    method.eval()
    index = torch.tensor([5, 1, 9, 3])
    with torch.no_grad():
        together = method(batch_of(labels, index, absent=(9,))).predictions
        wider = method(batch_of(labels, index, extra=6, absent=(9,))).predictions
        turned = method(batch_of(labels, index.flip(0), absent=(9,))).predictions
        for k in SUBTASKS:
            torch.testing.assert_close(wider[k], together[k])
            torch.testing.assert_close(turned[k].flip(0), together[k])
        for row, i in enumerate(index):
            alone = method(batch_of(labels, i[None], absent=(9,))).predictions
            torch.testing.assert_close(alone["M"][0], together["M"][row])


def test_frozen_language_model_stays_in_evaluation_mode(language_model):
    model = LanguageModel(language_model, "none")
    model.train()
    assert not model.encoder.training
    assert not any(p.requires_grad for p in model.parameters())
    last = LanguageModel(language_model, 1)
    learning = {name for name, p in last.named_parameters() if p.requires_grad}
    assert learning
    assert all(name.startswith("encoder.encoder.layer.2.") for name in learning)
    with pytest.raises(ValueError, match="has 3 layers"):
        LanguageModel(language_model, 4)


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
    factors = [rate_factor(step, 4, config) for step in range(13)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.5)
    assert factors[12] == pytest.approx(0.0)
    constant = make_config(None, ["train.epochs=3", "optim.warmup_epochs=0"])
    assert [rate_factor(step, 4, constant) for step in range(12)] == [1.0] * 12
