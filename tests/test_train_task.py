"""The three kinds of target."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from manifests import Card
from train.task import Task


def regression(**switches):
    card = Card(name="x", title="x", task="regression", range=[-3, 3], metrics="mosi")
    return Task.from_card(card, **switches)


def classification():
    card = Card(name="x", title="x", task="classification", classes=["a", "b", "c"])
    return Task.from_card(card)


def multilabel():
    card = Card(name="x", title="x", task="multilabel", labels=["a", "b"], classes=["a", "b"])
    return Task.from_card(card)


def test_labels_become_vectors():
    rows = pd.DataFrame({"id": ["u", "w"], "label": [-1.5, 2.0], "a": [0, 1], "b": [1, 1]})
    assert regression().encode(rows).tolist() == [[-1.5], [2.0]]
    assert multilabel().encode(rows).tolist() == [[0, 1], [1, 1]]
    rows["label"] = pd.Series(["c", "a"], dtype="string")
    assert classification().encode(rows).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_labels_that_cannot_be_read_name_the_utterance():
    rows = pd.DataFrame({"id": ["u", "w"], "label": [1.0, np.nan]})
    with pytest.raises(ValueError, match="the first is 'w'"):
        regression().encode(rows)
    rows["label"] = pd.Series(["a", "z"], dtype="string")
    with pytest.raises(
        ValueError, match=r"'w' has the label 'z', the card has the classes: a, b, c"
    ):
        classification().encode(rows)


def test_losses_against_the_formulas():
    output = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]])
    soft = torch.tensor([[0.2, 0.5, 0.1], [0.0, 0.0, 0.0]])
    expected = []
    for row, target in zip(output.tolist(), soft.tolist(), strict=True):
        bottom = sum(math.exp(x) for x in row)
        expected.append(
            -sum(t * math.log(math.exp(x) / bottom) for x, t in zip(row, target, strict=True))
        )
    assert classification().loss(output, soft).tolist() == pytest.approx(expected, rel=1e-5)

    expected = []
    for row, target in zip(output[:, :2].tolist(), soft[:, :2].tolist(), strict=True):
        probability = [1 / (1 + math.exp(-x)) for x in row]
        terms = [
            -t * math.log(p) - (1 - t) * math.log(1 - p)
            for p, t in zip(probability, target, strict=True)
        ]
        expected.append(sum(terms) / 2)
    assert multilabel().loss(output[:, :2], soft[:, :2]).tolist() == pytest.approx(expected)

    score, target = torch.tensor([[1.0], [-2.0]]), torch.tensor([[3.0], [-2.5]])
    assert regression().loss(score, target).tolist() == [2.0, 0.5]
    assert regression(regression_loss="mse").loss(score, target).tolist() == [4.0, 0.25]


def test_pseudo_labels_stay_in_range():
    wild = torch.tensor([[-9.0, 0.5, 9.0]])
    assert regression().clamp(wild).tolist() == [[-3.0, 0.5, 3.0]]
    assert multilabel().clamp(wild).tolist() == [[0.0, 0.5, 1.0]]


def test_alike():
    scores = torch.tensor([[-1.0], [0.0], [0.4], [-0.2]])
    assert regression().same_class(scores)[0].tolist() == [True, False, False, True]
    assert regression(bins=(-0.5, 0.5)).same_class(scores)[1].tolist() == [False, True, True, True]
    hot = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    assert multilabel().same_class(hot)[0].tolist() == [True, False, True, False]
    assert not multilabel().same_class(hot)[3].any()


def test_decisions_and_the_trivial_predictor():
    train = np.array([[1.0, 0, 0], [0, 1, 0], [0, 1, 0]])
    task = classification()
    assert task.to_decision(task.baseline(train, 2)).tolist() == [1, 1]
    assert task.names(np.array([2, 0]))[""].tolist() == ["c", "a"]
    assert regression().to_decision(
        regression().baseline(np.array([[1.0], [2.0]]), 1)
    ).tolist() == [1.5]
    task = multilabel()
    assert task.to_decision(task.baseline(np.array([[1, 0], [1, 1], [1, 0]]), 1)).tolist() == [
        [1, 0]
    ]
    assert list(task.names(np.array([[1, 0]]))) == ["_a", "_b"]
    torch.testing.assert_close(
        classification().scores(torch.zeros(1, 3)), torch.full((1, 3), 1 / 3)
    )
