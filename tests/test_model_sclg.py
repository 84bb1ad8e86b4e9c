"""Label generation against equations (13) to (15) in loops, and momentum worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train import sclg
from train.config import SCLGConfig
from train.sclg import PseudoLabels, movement, nearest


def slow_nearest(features, knn):
    n, width = features.shape
    rows = []
    for i in range(n):
        distances = [
            (math.sqrt(sum((a - b) ** 2 for a, b in zip(features[i], features[j], strict=True))), j)
            for j in range(n)
            if j != i
        ]
        rows.append([(d / math.sqrt(width), j) for d, j in sorted(distances)[:knn]])
    return rows


def slow_movement(truth, neighbours, sigma, reduction):
    moved = []
    for i, row in enumerate(neighbours):
        total = sum(math.exp(-(d**2) / (2 * sigma**2)) * (truth[j] - truth[i]) for d, j in row)
        moved.append(total / len(row) if reduction == "mean" else total)
    return torch.stack(moved)


@pytest.mark.parametrize("cells", [1 << 24, 40, 1])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_nearest_is_exact_in_chunks_of_any_size(monkeypatch, cells, offset):
    monkeypatch.setattr(sclg, "CELLS", cells)
    features = torch.randn(23, 6, generator=torch.Generator().manual_seed(1)) + offset
    distance, neighbour = nearest(features, 5)
    expected = slow_nearest(features.double().tolist() and features.double(), 5)
    assert neighbour.tolist() == [[j for _, j in row] for row in expected]
    torch.testing.assert_close(
        distance.double(),
        torch.tensor([[d for d, _ in row] for row in expected], dtype=torch.float64),
        rtol=1e-4,
        atol=1e-6,
    )


def test_twins_find_each_other_and_never_themselves():
    features = torch.tensor([[1.0, 2.0], [1.0, 2.0], [9.0, 9.0], [9.0, 9.0]])
    distance, neighbour = nearest(features, 1)
    assert neighbour[:, 0].tolist() == [1, 0, 3, 2]
    assert distance.tolist() == [[0.0]] * 4


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 4),
    st.floats(0.3, 3),
    st.sampled_from(["mean", "sum"]),
)
def test_movement_is_the_formula(seed, classes, sigma, reduction):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(9, 3, generator=generator)
    truth = torch.randn(9, classes, generator=generator)
    distance, neighbour = nearest(features, 4)
    expected = slow_movement(truth, slow_nearest(features, 4), sigma, reduction)
    torch.testing.assert_close(
        movement(truth, distance, neighbour, sigma, reduction), expected, rtol=1e-4, atol=1e-5
    )


def pseudo(truth, clamp=lambda y: y, **switches):
    config = SCLGConfig(**({"knn": 1, "start_epoch": 2} | switches))
    return PseudoLabels(torch.tensor(truth)[:, None], ["S", "t"], 1, clamp, config)


def test_momentum_by_hand():
    # Two utterances at one point: R = 1, so delta = (2 - 0, 0 - 2) in every epoch.
    labels = pseudo([0.0, 2.0])
    for k in ("S", "t"):
        labels.gather(k, torch.tensor([1, 0]), torch.tensor([[4.0], [4.0]]))
    seen = []
    for epoch in (1, 2, 3, 4):
        labels.move(epoch)
        seen.append(labels.of("S", torch.tensor([0, 1]))[:, 0].tolist())
    # e=1: before start_epoch. e=2: 1/3*0 + 2/3*2. e=3: 2/4*4/3 + 2/4*2. e=4: 3/5*5/3 + 2/5*2.
    assert seen[0] == [0.0, 2.0]
    for got, want in zip(seen[1:], ([4 / 3, 2 / 3], [5 / 3, 1 / 3], [9 / 5, 1 / 5]), strict=True):
        assert got == pytest.approx(want, abs=1e-6)


def test_distance_damps_the_movement():
    labels = pseudo([0.0, 2.0], start_epoch=1, sigma=2.0)
    labels.gather("S", torch.tensor([0, 1]), torch.tensor([[0.0], [3.0]]))
    labels.move(1)  # e=1: all weight on y + delta
    assert labels.of("S", torch.tensor([0])).item() == pytest.approx(2 * math.exp(-9 / 8))


def test_without_momentum_only_the_last_epoch_counts():
    labels = pseudo([0.0, 2.0], momentum=False)
    labels.move(5)
    assert labels.of("S", torch.tensor([0, 1]))[:, 0].tolist() == [2.0, 0.0]


def test_labels_stay_in_range_and_where_disabled():
    labels = pseudo([-1.0, 1.0], clamp=lambda y: y.clamp(-0.5, 0.5), momentum=False)
    labels.move(2)
    assert labels.labels[0, :, 0].tolist() == [0.5, -0.5]
    off = pseudo([-1.0, 1.0], enabled=False)
    off.move(9)
    assert off.labels[0, :, 0].tolist() == [-1.0, 1.0]


def test_state_survives_a_checkpoint():
    first, second = pseudo([0.0, 2.0]), pseudo([5.0, 5.0])
    first.gather("t", torch.tensor([0, 1]), torch.tensor([[1.0], [7.0]]))
    first.move(2)
    second.load_state_dict(first.state_dict())
    first.move(3)
    second.move(3)
    assert torch.equal(first.labels, second.labels)


def test_a_small_split_takes_all_its_neighbours(caplog):
    assert pseudo([0.0, 2.0, 1.0], knn=5).knn == 2
    assert "sclg.knn=5 is more than there are; using 2" in caplog.text
    with pytest.raises(ValueError, match="at least 2"):
        pseudo([0.0])
