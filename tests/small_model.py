"""A small SemanticMAC on a small data set, for the tests of the whole model."""

import torch

from cache import Packed
from manifests import Card
from train.config import make_config
from train.data import Batch
from train.methods import build_method
from train.model.language_model import Tokens
from train.task import Task

N, VOCABULARY = 12, 14  # utterances, and tokens of the small BERT
KINDS = ("regression", "classification", "multilabel")
CARDS = {
    "regression": Card("x", "x", "regression", range=[-3, 3]),
    "classification": Card("x", "x", "classification", classes=["a", "b"], metrics="emotion"),
    "multilabel": Card("x", "x", "multilabel", ["a", "b"], ["a", "b"]),
}


def labels_of(kind):
    if kind == "regression":
        return (2 * torch.randn(N, 1, generator=torch.Generator().manual_seed(2))).clamp(-3, 3)
    if kind == "classification":
        return torch.eye(2)[torch.arange(N) % 2]
    both = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    return both[torch.arange(N) % 5]


def make(language_model, *overrides, task="regression"):
    """The model, its pseudo labels begun, and the labels of all utterances."""
    small = ["width=16", "sclg.knn=3", "perceiver.tokens=4", f"text.model={language_model}"]
    config = make_config(None, [*small, *overrides])
    target = Task.from_card(CARDS[task], config.loss.regression, tuple(config.sccl.bins))
    torch.manual_seed(1)
    method = build_method(config, target, {"audio": 5, "vision": 7})
    labels = labels_of(task)
    method.begin(labels)
    return method, labels


def batch_of(labels, index, extra=0, absent=()):
    """The utterances at ``index`` of a fixed data set, with ``extra`` padded text positions.

    Those in ``absent`` have no audio.
    """
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
