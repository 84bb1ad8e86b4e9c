"""A share on the Hugging Face Hub: a server on this machine that speaks the same calls."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

from cache import FeatureStore, open_store
from cache.__main__ import main
from cache.share import catalog, hub
from cache.share.borrow import pull_named
from cache.share.card import make_card
from cache.share.location import Location, ShareError
from cache.share.pull import pull
from cache.share.push import push
from cache.share.remote_store import resolve_one
from cache.share.repair import repair
from cache.share.verify import verify
from cache.store.checksums import CHECKSUMS
from tests.hub import TOKEN, Repository, is_large, serving
from tests.stores import FILES, LENGTHS, RECIPE, build_store, recipe_of, tree_of

SHARE = "hf://datasets/lab/features"
NAME = f"toy/{RECIPE.store_name}"
OTHER = recipe_of(weights="01")
ROOT = Path(__file__).parent.parent


@pytest.fixture
def server(monkeypatch, tmp_path):
    with serving() as running:
        constants = {
            "ENDPOINT": running.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": running.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }
        for name, value in constants.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("SEMANTICMAC_CACHE", str(tmp_path / "mirror"))
        yield running


@pytest.fixture
def repository(server) -> Repository:
    return server.create("lab/features")


@pytest.fixture
def store(tmp_path) -> Path:
    return build_store(tmp_path / "stores")


def damage(repository: Repository, name: str) -> None:
    data = repository.files[f"{NAME}/{name}"]
    repository.commit(repository.files | {f"{NAME}/{name}": bytes([data[0] ^ 4]) + data[1:]})


def test_push_list_pull_is_byte_identical(server, repository, store, tmp_path):
    """As users run it: in processes of their own, with `HF_ENDPOINT`."""
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("HF_HUB_OFFLINE", None)

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "cache", *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    pushed = run("push", str(store), SHARE)
    assert f"{FILES} files copied" in pushed
    assert "stay research-only" in pushed
    assert RECIPE.digest[:12] in run("list", SHARE)
    run("pull", SHARE, "--stores", "pulled")
    pulled = tmp_path / "pulled" / NAME
    assert tree_of(pulled) == tree_of(store)
    assert verify(pulled) == []
    assert not list((tmp_path / "hf").rglob("blobs"))  # no second copy


def test_a_store_is_one_commit(repository, store):
    push(store, SHARE)
    assert repository.messages == ["initial commit", f"Push {NAME}"]
    files = {name.removeprefix(f"{NAME}/"): data for name, data in repository.files.items()}
    added = {"README.md", "catalog.json", f"catalog/{NAME}.json"}
    assert {n: d for n, d in files.items() if n in tree_of(store)} == tree_of(store)
    assert set(files) == {*tree_of(store), *added, ".gitattributes"}
    assert any(map(is_large, files.values()))
    assert not all(map(is_large, files.values()))


def test_a_second_push_makes_no_commit(repository, store, capsys):
    push(store, SHARE)
    assert main(["push", str(store), SHARE]) == 0
    assert f"{SHARE}/{NAME}: already there" in capsys.readouterr().out
    assert len(repository.commits) == 2


def test_the_catalogue_costs_a_request_for_all_entries(server, repository, store, tmp_path):
    push(store, SHARE)
    push(build_store(tmp_path / "other", recipe=OTHER), SHARE)
    server.requests.clear()
    found = catalog.entries(Location.parse(SHARE))
    assert sorted(entry.digest for entry in found) == sorted([RECIPE.digest, OTHER.digest])
    assert all(entry.who and entry.when for entry in found)
    assert [request.rpartition("/")[2] for request in server.requests] == [
        "catalog",
        "catalog.json",
    ]


def test_a_store_that_was_uploaded_by_hand_is_found_and_listed(repository, store, tmp_path):
    repository.commit({f"{NAME}/{name}": data for name, data in tree_of(store).items()})
    assert resolve_one(SHARE).name == RECIPE.store_name
    push(build_store(tmp_path / "other", recipe=OTHER), SHARE)
    stores = json.loads(repository.files["catalog.json"])["stores"]
    assert {plain["digest"] for plain in stores} == {RECIPE.digest, OTHER.digest}


def test_a_folder_of_a_repository_is_a_share(repository, store, tmp_path):
    push(store, f"{SHARE}/features/v1")
    assert f"features/v1/{NAME}/{CHECKSUMS}" in repository.files
    assert "features/v1/catalog.json" in repository.files
    assert pull(resolve_one(f"{SHARE}/features/v1"), tmp_path / "pulled")[1] == FILES


def test_every_command_takes_a_store_of_the_hub(repository, store, tmp_path, capsys):
    push(store, SHARE)
    assert open_store(f"{SHARE}/{RECIPE.digest[:12]}").ids == FeatureStore.open(store).ids
    assert main(["info", f"{SHARE}/{NAME}"]) == 0
    assert main(["verify", f"{SHARE}/{NAME}"]) == 0
    assert "every file is as published" in capsys.readouterr().out
    assert pull_named(RECIPE, [SHARE], tmp_path / "extracted") == f"{SHARE}/{NAME}"
    assert tree_of(tmp_path / "extracted" / NAME) == tree_of(store)


@pytest.mark.parametrize("how", ["missing", "changed"])
def test_a_damaged_file_is_found_and_mended(repository, store, tmp_path, how, capsys):
    push(store, SHARE)
    name = next(n for n, data in sorted(tree_of(store).items()) if is_large(data))
    if how == "missing":
        left = {n: data for n, data in repository.files.items() if n != f"{NAME}/{name}"}
        repository.commit(left)
    else:
        damage(repository, name)
    assert main(["verify", f"{SHARE}/{NAME}"]) == 1
    assert name in capsys.readouterr().out
    remedy = f"python -m cache push STORE {SHARE} --check"
    with pytest.raises(ShareError, match=f"{name} is .*{remedy}"):
        pull(resolve_one(SHARE), tmp_path / "pulled")
    with pytest.raises(ValueError, match=f"is mended in one commit; .*{remedy}"):
        repair(resolve_one(SHARE), str(store))
    count = len(repository.commits)
    assert main(["push", str(store), SHARE, "--check"]) == 0
    assert "1 files mended" in capsys.readouterr().out
    assert len(repository.commits) == count + 1
    assert main(["verify", f"{SHARE}/{NAME}"]) == 0


def test_a_local_store_is_repaired_from_the_hub(repository, store):
    push(store, SHARE)
    before = tree_of(store)
    path = store / next(n for n in before if n.startswith("audio/values/c/"))
    path.chmod(0o644)
    path.write_bytes(b"?")
    assert len(repair(store, SHARE)) == 1
    assert tree_of(store) == before


def test_a_damaged_list_is_restored(repository, store):
    push(store, SHARE)
    repository.commit(repository.files | {f"{NAME}/{CHECKSUMS}": b"{"})
    assert push(store, SHARE).mended == 1
    assert verify(resolve_one(SHARE)) == []


def test_a_damaged_store_is_not_pushed(repository, store):
    name = next(n for n in sorted(tree_of(store)) if n.startswith("audio/values/c/"))
    path = store / name
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=f"{name} is damaged; run: python -m cache verify"):
        push(store, SHARE)
    assert len(repository.commits) == 1


def test_other_content_is_refused_and_replaced_only_by_more(repository, store, tmp_path):
    fewer = build_store(tmp_path / "fewer", LENGTHS | {"a": (0, 0)})
    push(fewer, SHARE)
    repository.commit(repository.files | {f"{NAME}/audio/values/c/9/0": b"of a larger store"})
    with pytest.raises(ValueError, match="same recipe with different content"):
        push(store, SHARE)
    push(store, SHARE, replace=True)
    assert repository.messages[-1] == f"Push {NAME}"
    there = {n: d for n, d in repository.files.items() if n.startswith(f"{NAME}/")}
    assert there == {f"{NAME}/{name}": data for name, data in tree_of(store).items()}
    with pytest.raises(ValueError, match=r"has features of 1 utterances that .* lacks"):
        push(fewer, SHARE, replace=True)


def test_a_commit_in_between_is_not_overwritten(server, repository, store, tmp_path):
    other = build_store(tmp_path / "other", recipe=OTHER)

    def push_first() -> None:
        server.before_commit = lambda: None
        push(other, SHARE)

    server.before_commit = push_first
    with pytest.raises(
        ShareError, match=r"another commit was made .* at the same time; push again"
    ):
        push(store, SHARE)
    assert not [name for name in repository.files if name.startswith(NAME)]
    push(store, SHARE)
    assert len(catalog.entries(Location.parse(SHARE))) == 2


def test_a_file_that_the_repository_ignores_is_an_error(repository, store):
    repository.ignored = "audio/values"
    with pytest.raises(ShareError, match=r"audio/values/.* is incomplete on the share; push again"):
        push(store, SHARE)


def test_a_file_that_a_push_does_not_write_stops_it(repository, store):
    repository.commit(repository.files | {f"{NAME}/notes.txt": b"mine"})
    with pytest.raises(ValueError, match=r"unexpected file 'notes.txt'"):
        push(store, SHARE)
    assert repository.files[f"{NAME}/notes.txt"] == b"mine"


# --- revisions ------------------------------------------------------------------------------------


def test_a_revision_is_read_and_not_written(repository, store, tmp_path):
    push(store, SHARE)
    repository.tags["v1"] = repository.tags["refs/pr/1"] = repository.commits[-1][0]
    push(build_store(tmp_path / "other", recipe=OTHER), SHARE)
    for revision in ("v1", "refs%2Fpr%2F1", repository.commits[1][0]):
        source = resolve_one(f"{SHARE}@{revision}")
        assert source.name == RECIPE.store_name
        assert resolve_one(f"{SHARE}@{revision}/{RECIPE.digest[:12]}") == source
        assert pull(source, tmp_path / revision)[1] == FILES
    with pytest.raises(ValueError, match=f"@v1: a revision is read-only; name {SHARE}$"):
        push(store, f"{SHARE}@v1")
    with pytest.raises(ShareError, match="the repository has no revision 'v2'"):
        resolve_one(f"{SHARE}@v2")


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "hf://lab/features",
        "hf://datasets/features",
        "hf://models/lab/features",
        "hf://datasets/lab/features@",
        "hf://datasets/lab/features@a@b",
        "hf://",
    ],
)
def test_only_dataset_repositories_are_locations(text):
    with pytest.raises(ValueError, match=r"its form is hf://datasets/OWNER/NAME"):
        Location.parse(text)


def test_a_token_in_a_location_is_refused():
    with pytest.raises(ValueError, match="HF_TOKEN, or `hf auth login`"):
        Location.parse(f"hf://user:{TOKEN}@datasets/lab/features")


@pytest.mark.parametrize("token", [TOKEN, ""])
def test_a_missing_repository(server, store, monkeypatch, token, capsys):
    monkeypatch.setenv("HF_TOKEN", token)
    state = "a token is set" if token else "no token is set"
    remedy = "hf repos create lab/none --type dataset --private"
    for command in (["list"], ["pull"]):
        assert main([*command, "hf://datasets/lab/none"]) != 0
        error = capsys.readouterr().err
        assert f"no such dataset repository, or it is private and you have no access ({state})" in (
            error
        )
        assert remedy in error
    if token:
        with pytest.raises(ShareError, match=remedy):
            push(store, "hf://datasets/lab/none")


def test_a_push_without_a_token(repository, store, monkeypatch):
    push(store, SHARE)
    monkeypatch.delenv("HF_TOKEN")
    assert resolve_one(SHARE).name == RECIPE.store_name  # a public repository is read without
    with pytest.raises(ShareError, match="needs a token with write access: run hf auth login"):
        push(store, SHARE)


def test_a_wrong_token(repository, store, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    for work in (lambda: resolve_one(SHARE), lambda: push(store, SHARE)):
        with pytest.raises(ShareError, match="set HF_TOKEN to a valid token") as caught:
            work()
        assert "hf_of_nobody" not in str(caught.value)


def test_a_gated_repository(server, repository, store):
    repository.gated = True
    for work in (lambda: resolve_one(SHARE), lambda: push(store, SHARE)):
        with pytest.raises(ShareError, match=r"is gated: ask for access at http://.*/lab/features"):
            work()


def test_a_busy_hub_is_waited_for(server, repository, store, tmp_path, monkeypatch):
    push(store, SHARE)
    source = resolve_one(SHARE)
    pauses: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", pauses.append)
    server.busy = (2, {"Retry-After": "7"})
    assert source.checksums() is not None
    server.busy = (1, {"RateLimit": '"resolvers";r=0;t=55'})
    assert source.checksums() is not None
    assert pauses == [7, 7, 55]
    server.busy = (1, {"Retry-After": "90000"})
    with pytest.raises(
        ShareError, match=r"busy \(status 429\) and asks to wait 90000 s; try again"
    ):
        source.checksums()
    server.busy = (99, {"Retry-After": "0"})
    with pytest.raises(ShareError, match="the rate limit of the Hub is reached; try again later"):
        source.checksums()


def test_nothing_unlimited_is_read(server, repository, store):
    push(store, SHARE)
    share = Location.parse(SHARE)
    repository.commit(repository.files | {"large": bytes(10_000_000)})
    assert share.read("large", at_most=1000) == bytes(1001)
    server.packing = "gzip"
    with pytest.raises(ShareError, match="sends 'gzip' content, though it was asked for plain"):
        share.read("catalog.json")


def test_an_endless_listing_is_given_up(server, repository, store, monkeypatch):
    push(store, SHARE)
    monkeypatch.setattr(hub, "MOST_FILES", 10)
    with pytest.raises(ShareError, match="lists more than 10 files"):
        Location.parse(SHARE).sizes("")


def test_a_slow_hub_is_given_up(server, repository, store, monkeypatch):
    push(store, SHARE)
    monkeypatch.setattr(hub, "GRACE_S", -1e9)
    with pytest.raises(ShareError, match="the Hub is too slow"):
        Location.parse(SHARE).read("README.md")


def test_a_mirrored_store_is_used_while_the_hub_is_away(server, repository, store, monkeypatch):
    push(store, SHARE)
    url = f"{SHARE}/{NAME}"
    first = open_store(url).path
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert open_store(url).path == first


def test_huggingface_hub_is_imported_for_the_hub_only():
    code = "import sys, cache.share.push, cache.share.pull; print('huggingface_hub' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"


# --- the card -------------------------------------------------------------------------------------


def test_the_card_lists_the_stores_and_their_terms(repository, store, tmp_path):
    push(store, SHARE)
    first = repository.files["README.md"].decode()
    assert first.startswith("---\nlicense: other\n")
    assert "| toy | none | 5 | " in first
    assert f"| {RECIPE.digest[:12]} | none |" in first
    assert "stay research-only" in first
    assert "ImageBind" not in first
    imagebind = recipe_of(encoder="imagebind")
    about = {"licence": "mine | <b>yours</b>\n# theirs"}
    push(build_store(tmp_path / "other", recipe=imagebind, about=about), SHARE)
    second = repository.files["README.md"].decode()
    assert "| mine \\| &lt;b&gt;yours&lt;/b&gt; # theirs |" in second
    assert "ImageBind are licensed CC BY-NC-SA 4.0" in second
    assert RECIPE.digest[:12] in second


def test_a_card_of_the_owner_is_kept(repository, store):
    repository.commit(repository.files | {"README.md": b"---\nlicense: mit\n---\nMine."})
    push(store, SHARE)
    assert repository.files["README.md"] == b"---\nlicense: mit\n---\nMine."


def test_a_card_is_made_once(repository, store):
    push(store, SHARE)
    share = Location.parse(SHARE)
    assert make_card(SHARE, catalog.entries(share), repository.files["README.md"]) is None
