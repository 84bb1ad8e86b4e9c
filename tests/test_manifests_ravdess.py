"""RAVDESS from empty files under the official names: the splits must hold for any part of it."""

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import Manifest, adapters
from manifests.__main__ import main
from manifests.adapters.ravdess import EMOTIONS

SPLITS = {"train", "valid", "test"}


def speech(actor: int) -> list[str]:
    """Names of an actor's 60 speech clips (a neutral voice has no strong intensity)."""
    cells = product(range(1, 9), (1, 2), (1, 2), (1, 2))
    return [
        f"01-01-{e:02d}-{i:02d}-{s:02d}-{r:02d}-{actor:02d}.mp4"
        for e, i, s, r in cells
        if (e, i) != (1, 2)
    ]


def release(root: Path, names: list[str]) -> Path:
    for name in names:
        path = root / f"Actor_{name[-6:-4]}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def split_of_speakers(manifest: Manifest) -> dict[str, str]:
    return manifest.table.groupby("speaker")["split"].first().to_dict()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("ravdess")
    manifest, _ = adapters.build(
        "ravdess", release(root, [n for actor in range(1, 25) for n in speech(actor)])
    )
    return manifest


def test_whole_release(whole):
    counts = whole.table["split"].value_counts().to_dict()
    assert counts == {"train": 18 * 60, "valid": 2 * 60, "test": 4 * 60}
    assert whole.card.disjoint == ["speaker"]
    for split in ("valid", "test"):
        numbers = [int(s.removeprefix("actor_")) for s in whole.split(split)["speaker"]]
        assert sum(n % 2 for n in numbers) * 2 == len(numbers)  # as many men as women
    row = whole.table.set_index("id").loc["01-01-06-02-02-01-07"]
    assert row["video"] == "Actor_07/01-01-06-02-02-01-07.mp4"
    assert (row["label"], row["text"]) == ("fearful", "Dogs are sitting by the door")
    assert (row["speaker"], row["intensity"], row["repetition"]) == ("actor_07", "strong", 1)


@settings(max_examples=40, deadline=None)
@given(actors=st.sets(st.integers(1, 24), min_size=3))
def test_three_actors_fill_three_splits(whole, tmp_path_factory, actors):
    names = [speech(actor)[7] for actor in actors]
    manifest, _ = adapters.build("ravdess", release(tmp_path_factory.mktemp("some"), names))
    found = split_of_speakers(manifest)
    assert set(found.values()) == SPLITS
    if "17, 22 test" in manifest.card.split_rule:  # the fixed rule: as in the whole release
        assert found.items() <= split_of_speakers(whole).items()


def test_one_actor_splits_by_repetition(tmp_path):
    manifest, notes = adapters.build("ravdess", release(tmp_path, speech(5)))
    counts = manifest.table["split"].value_counts().to_dict()
    assert counts == {"train": 22, "valid": 8, "test": 30}
    assert set(manifest.split("test")["repetition"]) == {2}
    for split in SPLITS:
        assert set(manifest.split(split)["label"]) == set(EMOTIONS)
    # The card of this copy no longer promises what it cannot keep, and says so.
    assert manifest.card.disjoint == []
    assert "by repetition" in manifest.card.split_rule
    assert any("by repetition" in note for note in notes)


@settings(max_examples=60, deadline=None)
@given(names=st.sets(st.sampled_from(speech(5) + speech(6)), min_size=3, max_size=20))
def test_any_three_clips_fill_three_splits(tmp_path_factory, names):
    root = release(tmp_path_factory.mktemp("tiny"), sorted(names))
    manifest, _ = adapters.build("ravdess", root)
    assert set(manifest.table["split"]) == SPLITS
    again, _ = adapters.build("ravdess", root)
    assert again.digest == manifest.digest
    if "by repetition" in manifest.card.split_rule:  # nothing is tested that was never seen
        assert set(manifest.split("train")["label"]) == set(manifest.table["label"])


def test_other_files_are_skipped_and_reported(tmp_path, capsys):
    names = speech(5)
    silent, sound, song = (
        "02" + names[0][2:],
        "03" + names[0][2:-4] + ".wav",
        "01-02" + names[0][5:],
    )
    root = release(tmp_path / "in", [*names, silent, sound, song])
    for bad in ("trailer.mp4", "01-01-09-01-01-01-05.mp4", "01-01-03-01-01-01-99.mp4"):
        (root / "Actor_05" / bad).touch()
    (root / "README.txt").touch()
    assert main(["build", "ravdess", "--source", str(root), "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "skipped 1 files without sound" in said
    assert "skipped 1 files without picture" in said
    assert "skipped 1 files sung" in said
    for bad in ("trailer.mp4", "01-01-09-01-01-01-05.mp4", "01-01-03-01-01-01-99.mp4"):
        assert f"Actor_05/{bad}" in said
    assert len(Manifest.load(tmp_path / "out").table) == 60


def test_too_few_clips(tmp_path):
    with pytest.raises(ValueError, match=r"2 RAVDESS speech clips .*To obtain it: Download"):
        adapters.build("ravdess", release(tmp_path, speech(5)[:2]))


def test_the_same_clip_twice_is_a_fault(tmp_path):
    release(tmp_path / "a", speech(5)[:8])
    release(tmp_path / "b", speech(5)[:1])
    with pytest.raises(ValueError, match="duplicate id"):
        adapters.build("ravdess", tmp_path)
