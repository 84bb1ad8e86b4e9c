"""Label generation against equations (13) to (15) in loops, and momentum computed by hand."""

import math
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import SCLGConfig
from train.model import neighbours
from train.model.neighbours import nearest
from train.model.sclg import PseudoLabels, label_shift


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
    monkeypatch.setattr(neighbours, "CELLS", cells)
    features = torch.randn(23, 6, generator=torch.Generator().manual_seed(1)) + offset
    distance, neighbour = nearest(features, 5)
    expected = slow_nearest(features.double(), 5)
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
    expected = slow_movement(truth.double(), slow_nearest(features.double(), 4), sigma, reduction)
    delta = label_shift(truth, torch.arange(9), distance, neighbour, sigma, reduction)
    torch.testing.assert_close(delta.double(), expected, rtol=1e-4, atol=1e-5)


def pseudo(truth, clamp=lambda y: y, **switches):
    config = SCLGConfig(**({"knn": 1, "start_epoch": 2} | switches))
    return PseudoLabels(torch.tensor(truth)[:, None], ["S", "t"], 1, clamp, config)


def gather(labels, *features):
    """One feature of every utterance, the same for both sub-tasks, in two batches."""
    features = torch.tensor(features)[None, :, None].expand(2, -1, -1)
    first, rest = torch.tensor([1]), torch.tensor([i for i in range(features.shape[1]) if i != 1])
    for index in (first, rest):
        labels.collect(index, features[:, index])


def moved(labels):
    return labels.lookup(torch.arange(labels.labels.shape[1]))[..., 0].tolist()


def test_momentum_by_hand():
    # Two utterances at one point: R = 1, so delta = (2 - 0, 0 - 2) in every epoch.
    labels = pseudo([0.0, 2.0])
    seen = []
    for epoch in (1, 2, 3, 4):
        gather(labels, 4.0, 4.0)
        labels.update(epoch)
        seen.append(moved(labels)[0])
    # e=1: before start_epoch. e=2: 1/3*0 + 2/3*2. e=3: 2/4*4/3 + 2/4*2. e=4: 3/5*5/3 + 2/5*2.
    assert seen[0] == [0.0, 2.0]
    for got, want in zip(seen[1:], ([4 / 3, 2 / 3], [5 / 3, 1 / 3], [9 / 5, 1 / 5]), strict=True):
        assert got == pytest.approx(want, abs=1e-6)


def test_distance_damps_the_movement():
    labels = pseudo([0.0, 2.0], start_epoch=1, sigma=2.0)
    gather(labels, 0.0, 3.0)
    labels.update(1)  # e=1: all weight on y + delta
    assert moved(labels)[0][0] == pytest.approx(2 * math.exp(-9 / 8))


def test_without_momentum_only_the_last_epoch_counts():
    labels = pseudo([0.0, 2.0], momentum=False)
    labels.update(5)
    assert moved(labels)[0] == [2.0, 0.0]


def test_labels_stay_in_range_and_where_disabled():
    labels = pseudo([-1.0, 1.0], clamp=lambda y: y.clamp(-0.5, 0.5), momentum=False)
    labels.update(2)
    assert labels.labels[0, :, 0].tolist() == [0.5, -0.5]
    off = pseudo([-1.0, 1.0], enabled=False)
    off.update(9)
    assert off.labels[0, :, 0].tolist() == [-1.0, 1.0]


def test_state_survives_a_checkpoint():
    first, second = pseudo([0.0, 2.0]), pseudo([5.0, 5.0])
    gather(first, 1.0, 7.0)
    first.update(2)
    gather(first, 3.0, 1.0)
    second.load_state_dict(first.state_dict())
    first.update(3)
    second.update(3)
    assert torch.equal(first.labels, second.labels)


def test_a_small_split_takes_all_its_neighbours(caplog):
    assert pseudo([0.0, 2.0, 1.0], knn=5).knn == 2
    assert "sclg.knn=5 exceeds the number of neighbours; using 2" in caplog.text
    with pytest.raises(ValueError, match="at least 2"):
        pseudo([0.0])


def test_every_subtask_moves_by_its_own_features():
    labels = pseudo([0.0, 4.0, 8.0], momentum=False, sigma=1e-3)
    labels.collect(torch.arange(3), torch.tensor([[[1.0], [1.0], [50.0]], [[1.0], [50.0], [50.0]]]))
    labels.update(2)
    assert moved(labels) == [[4.0, 0.0, 8.0], [0.0, 8.0, 4.0]]


@pytest.fixture(scope="module")
def clustered():
    """Points on a curved sheet, like learnt features, with a pair of twins."""
    generator = torch.Generator().manual_seed(3)
    place = torch.rand(2000, 3, generator=generator)
    features = torch.tanh(place @ torch.randn(3, 16, generator=generator))
    features[7] = features[1234]
    return features


def test_faiss_finds_what_the_exact_search_finds(clustered):
    pytest.importorskip("faiss")
    _, exact = nearest(clustered, 5, index="exact")
    distance, found = nearest(clustered, 5, index="faiss")
    rows = zip(exact.tolist(), found.tolist(), strict=True)
    recall = sum(len(set(a) & set(b)) for a, b in rows) / exact.numel()
    assert recall > 0.99
    assert found[7, 0] == 1234
    assert not (found == torch.arange(2000)[:, None]).any()
    expected = (clustered[:, None] - clustered[found]).norm(dim=2) / 4
    torch.testing.assert_close(distance, expected)
    some = torch.tensor([3, 1999, 7])
    assert torch.equal(nearest(clustered, 5, some, "faiss")[1], found[some])


def test_faiss_gives_every_row_its_neighbours_even_among_many_twins():
    pytest.importorskip("faiss")
    features = torch.eye(4).repeat(50, 1)
    distance, found = nearest(features, 49, index="faiss")
    assert (distance == 0).all()
    assert all(len(set(row) - {i}) == 49 for i, row in enumerate(found.tolist()))


def test_faiss_is_taken_for_many_utterances_only(clustered, monkeypatch):
    taken = []
    for name in ("_exactly", "_by_faiss"):
        search = getattr(neighbours, name)
        monkeypatch.setattr(
            neighbours, name, lambda *given, s=search, n=name: taken.append(n) or s(*given)
        )
    monkeypatch.setattr(neighbours, "_installed", lambda: True)
    nearest(clustered, 2)
    monkeypatch.setattr(neighbours, "FAISS_FROM", 2000)
    if find_spec("faiss"):
        nearest(clustered, 2)
        assert taken == ["_exactly", "_by_faiss"]
    monkeypatch.setattr(neighbours, "_installed", lambda: False)
    nearest(clustered, 2)
    assert taken[-1] == "_exactly"
    with pytest.raises(ValueError, match=r"sclg\.index=faiss needs a package"):
        pseudo([0.0, 2.0], index="faiss")


def search_beside_another(rank, folder, truth, features):
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    config = SCLGConfig(knn=4, start_epoch=1)
    labels = PseudoLabels(truth, ["S", "t"], features.shape[2], lambda y: y, config)
    for epoch in (1, 2):
        mine = torch.arange((rank + epoch) % 2, len(truth), 2)  # the other's in the next epoch
        labels.collect(mine, features[:, mine] * epoch)
        labels.update(epoch)
    torch.save(labels.labels, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_move_labels_as_one_does(tmp_path):
    generator = torch.Generator().manual_seed(5)
    truth = torch.randn(21, 2, generator=generator)
    features = torch.randn(2, 21, 6, generator=generator)
    alone = PseudoLabels(truth, ["S", "t"], 6, lambda y: y, SCLGConfig(knn=4, start_epoch=1))
    for epoch in (1, 2):
        alone.collect(torch.arange(21), features * epoch)
        alone.update(epoch)
    torch.multiprocessing.spawn(search_beside_another, (tmp_path, truth, features), nprocs=2)
    for rank in (0, 1):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone.labels)
