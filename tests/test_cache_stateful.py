"""Any sequence of publish, retry, push, pull, verify and gc agrees with a model of dictionaries."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import permutations
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache import FeatureStore, Parts, Record, publish
from cache.share import catalog
from cache.share.gc import delete_garbage, find_garbage
from cache.share.location import Location
from cache.share.pull import pull
from cache.share.push import push
from cache.share.remote_store import RemoteStore
from cache.share.repair import repair
from cache.share.verify import Fault, verify
from cache.store.publish import is_published, republish
from cache.store.temp_paths import TempPath, retry_of
from tests.stores import RECIPE, WIDTHS, features_of, write_part

FRAMES = {"a": 3, "b": 1, "c": 2, "d": 4}
IDS = tuple(FRAMES)
MACHINES = ("first", "second")
PLACES = (*MACHINES, "share", "mirror")
DAY_S = 86400.0
ABOUT = {"licence": "none"}

Content = dict[str, bytes]
"""The features of each utterance of a store; empty for a failed one."""


class InterruptedCopyError(Exception):
    """Raised while files are copied, as if the command was stopped."""


def stop_after(files: int | None) -> Callable[[int, int], None]:
    """Return a progress callback that raises an error once that many files were copied."""
    calls = []

    def on_bytes(_done: int, _total: int) -> None:
        calls.append(1)
        if files is not None and len(calls) > files:
            raise InterruptedCopyError

    return on_bytes


def features(i: str) -> bytes:
    """Return the features of an utterance as they are stored."""
    rows = [features_of(i, m, FRAMES[i], width) for m, width in WIDTHS.items()]
    return b"".join(values.astype(np.float16).tobytes() for values in rows)


def records_of(outcome: dict[str, bool]) -> list[Record]:
    """Return a record per utterance that was extracted (True) or failed (False)."""
    frames = {i: FRAMES[i] if good else 0 for i, good in outcome.items()}
    return [
        Record(i, "ok" if n else "failed", "" if n else "why", 1.5, n, n) for i, n in frames.items()
    ]


def content_of(store: Path) -> Content:
    """Read a store with the public reader."""
    cache = FeatureStore.open(store)
    selected = cache.select(cache.ids)
    found = {}
    for index, i in enumerate(cache.ids):
        rows = []
        for m in WIDTHS:
            start, length = int(selected.starts[m][index]), int(selected.lengths[m][index])
            rows.append(selected.values[m][start : start + length].numpy().tobytes())
        found[i] = b"".join(rows)
        assert cache.status[i] == ("ok" if found[i] else "failed")
    return found


outcomes = st.dictionaries(st.sampled_from(IDS), st.booleans(), min_size=1)
machines = st.sampled_from(MACHINES)
replaces = st.sampled_from((True, True, False))
stops = st.none() | st.integers(0, 18)


class Stores(RuleBasedStateMachine):
    """Two machines that extract, one share, and a mirror that pulls from it.

    The model: per place the `Content` of its published store, and per machine that of its parts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.no_sync = mock.patch("os.fsync")  # no power failure is tested
        self.no_sync.start()
        self.root = Path(tempfile.mkdtemp())
        (self.root / "share").mkdir()
        self.stores: dict[str, Content] = {}
        self.parts: dict[str, Content] = {}
        self.partial = False

    def teardown(self) -> None:
        self.no_sync.stop()
        shutil.rmtree(self.root)

    def path(self, place: str) -> Path:
        return self.root / place / RECIPE.dataset / RECIPE.store_name

    @initialize()
    def first_extraction(self) -> None:
        self.extract("first", {"a": True, "b": False, "c": False, "d": False})

    @precondition(lambda self: "second" not in self.stores)
    @rule(outcome=st.dictionaries(st.sampled_from(IDS), st.booleans(), min_size=3))
    def second_extraction(self, outcome: dict[str, bool]) -> None:
        self.extract("second", outcome)

    def extract(self, machine: str, outcome: dict[str, bool]) -> None:
        store, known = self.path(machine), self.parts.setdefault(machine, {})
        write_part(store, records_of(outcome))
        for i, good in outcome.items():
            known[i] = features(i) if good else known.get(i, b"")
        if known.keys() != set(IDS):
            with pytest.raises(ValueError, match="missing from the parts"):
                publish(store, RECIPE, WIDTHS, ABOUT, IDS)
            return
        publish(store, RECIPE, WIDTHS, ABOUT, IDS)
        self.stores[machine] = self.parts.pop(machine)

    def unfinished(self) -> list[str]:
        """The machines that have a store with failed utterances."""
        return [m for m in MACHINES if b"" in self.stores.get(m, {}).values()]

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data(), outcome=outcomes)
    def retry(self, data: st.DataObject, outcome: dict[str, bool]) -> None:
        machine = data.draw(st.sampled_from(self.unfinished()))
        store, kept = self.path(machine), self.stores[machine]
        write_part(retry_of(store), records_of(outcome))
        republish(store, RECIPE, WIDTHS, ABOUT, Parts(retry_of(store)))
        again = {i: features(i) for i, good in outcome.items() if good}
        self.stores[machine] = {i: kept[i] or again.get(i, b"") for i in IDS}

    @rule(machine=machines, replace=replaces, stop=stops)
    def push(self, machine: str, replace: bool, stop: int | None) -> None:
        if machine not in self.stores:
            return
        ours, theirs = self.stores[machine], self.stores.get("share")
        lost = [i for i in IDS if theirs and theirs[i] and not ours[i]]
        if theirs not in (None, ours) and (lost or not replace):
            with pytest.raises(ValueError, match="not replaced" if replace else "--replace"):
                self.copy_to_share(machine, replace, stop)
            return
        with suppress(InterruptedCopyError):
            copied = self.copy_to_share(machine, replace, stop)
            assert not copied or theirs != ours
            self.stores["share"] = ours

    def copy_to_share(self, machine: str, replace: bool, stop: int | None) -> int:
        store, share = self.path(machine), str(self.root / "share")
        on_bytes = stop_after(stop)
        return push(store, share, take_over=True, replace=replace, workers=1, on_bytes=on_bytes)[1]

    @precondition(lambda self: "share" in self.stores)
    @rule(replace=replaces, stop=stops)
    def pull(self, replace: bool, stop: int | None) -> None:
        theirs, ours = self.stores["share"], self.stores.get("mirror")
        if ours not in (None, theirs) and not replace:
            with pytest.raises(ValueError, match="other content"):
                self.copy_to_mirror(replace, stop)
        else:
            try:
                copied = self.copy_to_mirror(replace, stop)
                assert not copied or ours != theirs
                self.partial = self.partial and ours == theirs
                self.stores["mirror"] = theirs
            except InterruptedCopyError:
                self.partial = True

    def copy_to_mirror(self, replace: bool, stop: int | None) -> int:
        source, on_bytes = RemoteStore.parse(str(self.path("share"))), stop_after(stop)
        return pull(source, self.root / "mirror", replace=replace, workers=1, on_bytes=on_bytes)[1]

    def twins(self) -> list[tuple[str, str]]:
        """The pairs of places with equal stores."""
        pairs = permutations(sorted(self.stores), 2)
        return [(one, other) for one, other in pairs if self.stores[one] == self.stores[other]]

    @precondition(lambda self: self.twins())
    @rule(data=st.data())
    def damage_and_repair(self, data: st.DataObject) -> None:
        place, copy = data.draw(st.sampled_from(self.twins()))
        store = self.path(place)
        names = sorted(p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file())
        names.remove("checksums.json")
        name = data.draw(st.sampled_from(names))
        whole = (store / name).read_bytes()
        (store / name).unlink()
        if data.draw(st.booleans()):
            (store / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        (fault,) = verify(store)
        assert (fault.file, fault.problem in ("missing", "changed")) == (name, True)
        assert repair(store, str(self.path(copy))) == [fault]

    @precondition(lambda self: "mirror" in self.stores or self.partial)
    @rule(unused_days=st.sampled_from((0, 40)), older_than_days=st.sampled_from((None, 30)))
    def gc(self, unused_days: int, older_than_days: int | None) -> None:
        mirror = self.root / "mirror"
        then = time.time() - unused_days * DAY_S
        for path in (mirror, *mirror.rglob("*")):
            if path.exists():
                os.utime(path, (then, then))
        for garbage in find_garbage(mirror, older_than_days):
            delete_garbage(garbage)
        if unused_days > 1:
            self.partial = False
        if older_than_days is not None and unused_days > older_than_days:
            self.stores.pop("mirror", None)

    @invariant()
    def every_store_is_as_the_model(self) -> None:
        for place in PLACES:
            store = self.path(place)
            assert is_published(store) == (place in self.stores)
            if place in self.stores:
                assert content_of(store) == self.stores[place]
                assert verify(store) == list[Fault]()

    @invariant()
    def the_catalogue_is_as_the_model(self) -> None:
        if (self.root / "share").exists():
            entries = catalog.entries(Location.parse(str(self.root / "share")))
            failures = [entry.failures for entry in entries]
            share = self.stores.get("share")
            assert failures == ([] if share is None else [list(share.values()).count(b"")])

    @invariant()
    def nothing_else_is_left(self) -> None:
        for place in PLACES:
            store = self.path(place)
            allowed = {store.name} if place in self.stores else set()
            if place in MACHINES:
                allowed |= {TempPath.PARTS.name_for(store.name)}
            if place == "share":
                allowed |= {TempPath.PUSHING.name_for(store.name), store.name}
            if place == "mirror" and self.partial:
                allowed |= {TempPath.PARTIAL.name_for(store.name)}
            left = {p.name for p in store.parent.iterdir()} if store.parent.exists() else set()
            assert left <= allowed


TestStores = Stores.TestCase
TestStores.settings = settings(
    max_examples=10,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # shrinking a failure would take minutes
)
