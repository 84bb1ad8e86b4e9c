"""Properties of every method: it trains, ignores padding, accepts missing inputs, reloads."""

import pytest
import torch

from cache import Packed
from manifests import Card
from tests.language_models import CHINESE, NAMES, WORDS, save_language_model
from train.config import OptimConfig, make_config
from train.data import Batch
from train.methods import METHODS, build_method
from train.model.language_model import Tokens, load_tokenizer, tokenize
from train.optimizer import parameter_groups
from train.run_folder import predicting_state
from train.task import Task

N = 32
WIDTHS = {"text": 12, "audio": 5, "vision": 7}
SMALL = ["width=16", "perceiver.tokens=2", "perceiver.layers=1", "sgfi.layers=1", "sclg.knn=3"]
OPTIONS = {
    "tfn": ["options.text=8", "options.audio=4", "options.vision=4"],
    "ef_lstm": ["options.steps=4", "options.hidden=32"],
    "mfn": ["options.steps=4", "options.memory=16", "options.text=16"],
    "mult": ["options.width=12", "options.heads=3", "options.layers=1", "options.self_layers=1"],
    "misa": ["options.lstm=8"],
    "mag": ["options.dropout=0"],
}
CARDS = {
    "regression": Card("x", "x", "regression", range=[-3, 3]),
    "classification": Card("x", "x", "classification", classes=["a", "b"], metrics="emotion"),
    "multilabel": Card("x", "x", "multilabel", ["a", "b", "c"], ["a", "b", "c"]),
}
TRIVIAL = ("mean", "majority")
TRAINED = [name for name in METHODS if name not in TRIVIAL]
MODALITIES = {"text", "audio", "vision"}
BLIND = {"text": {"audio", "vision"}, "audio": {"text", "vision"}, "vision": {"text", "audio"}}


def labels_of(kind):
    generator = torch.Generator().manual_seed(2)
    if kind == "regression":
        return (2 * torch.randn(N, 1, generator=generator)).clamp(-3, 3)
    if kind == "classification":
        return torch.eye(2)[torch.arange(N) % 2]
    return (torch.rand(N, 3, generator=generator) > 0.5).float()


def make(name, *overrides, kind="regression", begin=True):
    config = make_config(
        None,
        [f"method={name}", "text.source=features", *SMALL, *OPTIONS.get(name, []), *overrides],
    )
    torch.manual_seed(1)
    method = build_method(config, Task.from_card(CARDS[kind]), WIDTHS)
    if begin:
        method.begin(labels_of(kind))
    return method


def batch_of(index, kind="regression", absent=()):
    """The utterances at ``index`` of a fixed data set; ``absent``: pairs of place and modality."""
    generator = torch.Generator().manual_seed(3)
    packed = {}
    for modality, width in WIDTHS.items():
        lengths = torch.randint(1, 7, (N,), generator=generator)
        rows = [torch.randn(int(n), width, generator=generator) for n in lengths]
        rows = [x[:0] if (i, modality) in absent else x for i, x in enumerate(rows)]
        chosen = [rows[i] for i in index]
        packed[modality] = Packed(torch.cat(chosen).half(), torch.tensor([len(x) for x in chosen]))
    return Batch(index=index, labels=labels_of(kind)[index], **packed)


@pytest.mark.parametrize("kind", CARDS)
@pytest.mark.parametrize("name", TRAINED)
def test_every_trainable_weight_gets_a_gradient(name, kind):
    method = make(name, kind=kind).train()
    batch = batch_of(torch.arange(8), kind, absent={(3, "audio"), (4, "vision"), (5, "text")})
    terms = method.loss(method(batch), batch)
    terms["total"].backward()
    silent = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
    assert all(term.ndim == 0 for term in terms.values())


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_outputs_do_not_depend_on_padding_order_or_batch(name):
    method = make(name).eval()
    index, absent = torch.tensor([5, 1, 9, 3]), {(9, "audio"), (3, "vision"), (1, "text")}
    together = method(batch_of(index, absent=absent))
    for row, i in enumerate(index):
        alone = method(batch_of(i[None], absent=absent))
        for k, output_BC in together.predictions.items():
            torch.testing.assert_close(alone.predictions[k][0], output_BC[row])
        for k, value_B in together.reported.items():
            torch.testing.assert_close(alone.reported[k][0], value_B[row])


@pytest.mark.parametrize("name", METHODS)
def test_missing_modalities_leave_the_loss_finite(name):
    method = make(name).train()
    for gone in ({"audio"}, {"vision"}, {"text"}, MODALITIES):
        absent = {(i, m) for i in range(4) for m in gone}
        batch = batch_of(torch.arange(4), absent=absent)
        assert method.loss(method(batch), batch)["total"].isfinite()
    only = batch_of(torch.arange(1))  # the last batch of an epoch may be a single utterance
    assert method.loss(method(only), only)["total"].isfinite()


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_trained_weights_predict_in_a_fresh_model(name):
    method = make(name)
    method.train()
    batch = batch_of(torch.arange(6))
    method.loss(method(batch), batch)
    method.end_epoch(1)
    fresh = make(name, "seed=2", begin=False)
    torch.manual_seed(5)
    fresh.load_state_dict(predicting_state(method))
    fresh.eval(), method.eval()
    outputs = fresh(batch)
    torch.testing.assert_close(outputs.predictions["M"], method(batch).predictions["M"])
    assert outputs.features["M"].shape == (6, 1 if name in TRIVIAL else 16)


@pytest.mark.parametrize("name", TRAINED)
def test_overfits_32_utterances(name):
    torch.manual_seed(0)
    method = make(name, "dropout=0", "width=32").train()
    optimiser = torch.optim.Adam(method.parameters(), 1e-2)
    batch = batch_of(torch.arange(N))
    least = (batch.labels - batch.labels.median()).abs().mean()
    for epoch in range(1, 46):
        optimiser.zero_grad()
        method.loss(method(batch), batch)["total"].backward()
        optimiser.step()
        if epoch in (1, 2, 3):
            method.end_epoch(epoch)
    method.eval()
    with torch.no_grad():
        output = method(batch).predictions["M"]
    assert method.task.loss(output, batch.labels).mean() < 0.45 * least


@pytest.mark.parametrize("name", ["text", "audio", "vision"])
@torch.no_grad()
def test_a_unimodal_method_does_not_read_other_modalities(name):
    method = make(name).eval()
    index = torch.arange(4)
    whole = method(batch_of(index)).predictions["M"]
    blind = method(batch_of(index, absent={(i, m) for i in range(4) for m in BLIND[name]}))
    assert torch.equal(whole, blind.predictions["M"])
    deaf = method(batch_of(index, absent={(i, name) for i in range(4)})).predictions["M"]
    assert not torch.allclose(whole, deaf)


def test_constant_baselines():
    scores = torch.tensor([[1.0], [2.0], [2.0], [-2.0], [-2.0]])
    for name, expected in (("mean", 0.2), ("majority", -2.0)):
        method = make(name, begin=False)
        method.begin(scores)
        answer_BC = method(batch_of(torch.arange(3))).predictions["M"]
        assert torch.allclose(answer_BC, torch.tensor(expected))
        assert not list(method.parameters())
    for name in TRIVIAL:
        one = make(name, kind="classification", begin=False)
        one.begin(torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]))
        assert torch.allclose(one.answer.softmax(0), torch.tensor([0.2, 0.8]))
        many = make(name, kind="multilabel", begin=False)
        many.begin(torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]]))
        assert torch.allclose(many.answer.sigmoid(), torch.tensor([0.25, 0.75, 0.5]))


def test_options_of_another_method_are_refused():
    for name in ("mre", *OPTIONS):
        with pytest.raises(ValueError, match=rf"method={name} has: "):
            make(name, "options.nonsense=1")
    for name in ("semanticmac", "text", "mean"):
        with pytest.raises(ValueError, match=rf"method={name} has no options.* options\.nonsense"):
            make(name, "options.nonsense=1")
    for name, wrong in (("lmf", "rank=0"), ("mfn", "steps=-1"), ("mag", "layer=-1")):
        with pytest.raises(ValueError, match=rf"options\.{wrong.split('=')[0]}' is .*it must be"):
            make(name, f"options.{wrong}")
    for wrong in ("options.width=10", "options.kernel_audio=2"):
        with pytest.raises(ValueError, match="options"):
            make("mult", wrong)


@pytest.fixture(scope="module")
def language_models(tmp_path_factory):
    return {name: save_language_model(name, tmp_path_factory.mktemp(name)) for name in NAMES}


def with_tokens(batch, extra=0, left=False):
    """The batch with random tokens for text features, ``extra`` of them padding."""
    count, length = len(batch), 5
    ids = torch.randint(1, 10, (N, length), generator=torch.Generator().manual_seed(4))
    ids, mask = ids[batch.index], torch.ones(count, length, dtype=torch.bool)
    sides = (extra, 0) if left else (0, extra)
    ids, mask = (torch.nn.functional.pad(x, sides) for x in (ids, mask))
    tokens = Tokens(ids, mask, torch.zeros_like(ids))
    return Batch(batch.index, tokens, batch.audio, batch.vision, batch.labels)


# Weights of LSTMs, of PyTorch's attention and of XLNet, by the ends of their names.
DECAYS = {
    **{"weight_ih_l0": True, "in_proj_weight": True, "rel_attn.q": True, "factors.0": True},
    **{"r_w_bias": False, "seg_embed": False, "word_embedding.weight": False, "missing": False},
}


@pytest.mark.parametrize("model", ["bert", "xlnet"])
@pytest.mark.parametrize("name", TRAINED)
def test_with_a_language_model(name, model, language_models):
    """The model trains at its own rate; padding on its side changes nothing."""
    source = ["text.source=model", f"text.model={language_models[model]}", "optim.lr_text=0.25"]
    method = make(name, *source, *(["options.layer=2"] if name == "mag" else []))
    batch = batch_of(torch.arange(4))
    short = with_tokens(batch)
    method.loss(method.train()(short), short)["total"].backward()
    encoder = {n: p for n, p in method.named_parameters() if "text.encoder." in n}
    assert bool(encoder) == (name not in ("audio", "vision"))
    learning = [p for p in encoder.values() if p.requires_grad]
    assert all(p.grad is not None for p in learning)
    groups = parameter_groups(method, method.config.optim)
    decaying = {id(p) for g in groups for p in g["params"] if g["weight_decay"]}
    for ending, decays in DECAYS.items():
        found = [id(p) for n, p in method.named_parameters() if n.endswith(ending)]
        assert all((each in decaying) == decays for each in found), ending
    slow = {id(p) for group in groups for p in group["params"] if group["lr"] == 0.25}
    assert slow == {id(p) for p in learning}
    method.eval()
    with torch.no_grad():
        longer = method(with_tokens(batch, 3, left=model == "xlnet")).predictions["M"]
        torch.testing.assert_close(longer, method(short).predictions["M"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model", NAMES)
def test_semanticmac_with_every_language_model(model, language_models):
    """From words to a training step and a prediction that does not depend on padding."""
    words, gap = (CHINESE, "") if model == "chinese-bert" else (WORDS, " ")
    texts = [gap.join(words[:n]) for n in (2, 0, 5, 8)]
    tokenized = tokenize(load_tokenizer(language_models[model]), texts, 32)

    def spoken(index):
        heard = batch_of(index, absent={(1, "audio"), (2, "vision")})
        text = tokenized.batch(index)
        return Batch(index, text, heard.audio, heard.vision, heard.labels)

    method = make("semanticmac", "text.source=model", f"text.model={language_models[model]}")
    batch = spoken(torch.arange(4))
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    rates = OptimConfig(lr_text=1e-3, lr=1e-2, weight_decay=0)  # what moves had a gradient
    optimiser = torch.optim.AdamW(parameter_groups(method, rates))
    method.loss(method.train()(batch), batch)["total"].backward()
    optimiser.step()
    learning = {n: p for n, p in method.named_parameters() if p.requires_grad}
    assert [n for n, p in learning.items() if torch.equal(p, before[n])] == []
    method.eval()
    with torch.no_grad():
        together = method(batch).predictions
        for i in range(4):
            alone = method(spoken(torch.tensor([i]))).predictions
            for k, answer_BC in together.items():
                torch.testing.assert_close(alone[k][0], answer_BC[i], atol=1e-5, rtol=1e-4)
