"""A shared store replaced by one with more utterances, on a real folder and a real S3 server."""

import os
import threading
from pathlib import Path

import pytest

from cache import FeatureStore, Parts, Record
from cache.__main__ import main
from cache.share import catalog
from cache.share.location import Location, ShareError
from cache.share.mirror import mirror
from cache.share.pull import pull
from cache.share.push import push
from cache.share.remote_store import resolve_one
from cache.share.verify import verify
from cache.store.checksums import Checksums
from cache.store.publish import republish
from tests.stores import FILES, LENGTHS, RECIPE, WIDTHS, build_store, tree_of, write_part

NAME = f"toy/{RECIPE.store_name}"


@pytest.fixture
def store(tmp_path) -> Path:
    return build_store(tmp_path / "first")


@pytest.fixture
def retried(tmp_path) -> Path:
    """The same store, with the utterance that had failed."""
    store = build_store(tmp_path / "retried")
    retry = store.with_name(f"{store.name}.retry")
    write_part(retry, [Record("bad", "ok", "", 1.5, 2, 2)])
    return republish(store, RECIPE, WIDTHS, {"licence": "none"}, Parts(retry))


def test_a_retried_store_replaces_the_shared_one(share, store, retried, tmp_path, capsys):
    push(store, share)
    assert main(["push", str(retried), share, "--take-over"]) == 1
    assert "push it with --replace" in capsys.readouterr().err
    assert main(["push", str(retried), share, "--replace"]) == 0
    assert f"{FILES} files copied" in capsys.readouterr().out
    pulled = pull(resolve_one(share), tmp_path / "pulled")[0]
    assert tree_of(pulled) == tree_of(retried)
    (entry,) = catalog.entries(Location.parse(share))
    assert (entry.content, entry.failures) == (Checksums.of(retried).content, 0)
    assert push(retried, share, replace=True)[1] == 0
    assert not [name for name in Location.parse(share).sizes("") if "pushing" in name]


def test_nothing_is_lost_by_replacing(share, store, retried, tmp_path):
    push(retried, share)
    with pytest.raises(ValueError, match=r"1 utterances that .* lacks: bad; it was not replaced"):
        push(store, share, replace=True)
    fewer = {i: frames for i, frames in LENGTHS.items() if i != "ü/x"}
    with pytest.raises(ValueError, match=r"2 utterances"):
        push(build_store(tmp_path / "fewer", fewer), share, replace=True)
    assert tree_of(pull(resolve_one(share), tmp_path / "pulled")[0]) == tree_of(retried)


def test_replace_pushes_where_nothing_is(share, retried):
    assert push(retried, share, replace=True)[1] == FILES


@pytest.mark.parametrize("at", [1, 5, 20, 21])
def test_an_interrupted_replacement_is_harmless_and_resumes(
    share, store, retried, tmp_path, monkeypatch, at
):
    """A copy of the old store stays usable; a pull gets the whole store or a clear error."""
    monkeypatch.setenv("SEMANTICMAC_CACHE", str(tmp_path / "mirror"))
    push(store, share)
    mirrored = mirror(f"{share}/{NAME}")
    write, calls, counting = Location.write, [], threading.Lock()

    def interrupted(*arguments, **named):
        with counting:
            calls.append(arguments)
        if len(calls) > at:
            raise KeyboardInterrupt
        return write(*arguments, **named)

    monkeypatch.setattr(Location, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        push(retried, share, replace=True, workers=2)
    monkeypatch.setattr(Location, "write", write)
    assert mirror(f"{share}/{NAME}") == mirrored
    assert tree_of(mirrored) == tree_of(store)
    try:
        pulled = pull(resolve_one(share), tmp_path / "early")[0]
        assert tree_of(pulled) == tree_of(store)
    except ShareError as error:
        assert share.startswith("s3")  # there, files change one by one
        assert "being replaced there" in str(error)  # noqa: PT017
    push(retried, share, replace=True)
    pulled = pull(resolve_one(share), tmp_path / "late")[0]
    assert tree_of(pulled) == tree_of(retried)
    assert mirror(f"{share}/{NAME}") == mirrored
    assert tree_of(mirrored) == tree_of(retried)


def test_a_folder_share_holds_a_whole_store_at_every_moment(store, retried, tmp_path, monkeypatch):
    share = tmp_path / "share"
    push(store, str(share))
    write = Location.write
    seen = []

    def watched(*arguments, **named):
        seen.append(verify(share / NAME))
        return write(*arguments, **named)

    monkeypatch.setattr(Location, "write", watched)
    opened = FeatureStore.open(share / NAME)
    features = opened.select(["a"], resident=False).values["audio"]
    before = features.clone()
    push(retried, str(share), replace=True)
    assert len(seen) > 20
    assert not any(seen)
    assert verify(share / NAME) == []
    assert features.equal(before)  # what a run has mapped stays
    assert sorted(os.listdir(share / "toy")) == [RECIPE.store_name]  # noqa: PTH208
