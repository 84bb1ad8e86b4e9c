"""Arrays of a store that its checksums approve and that are none: one clear line, and no more."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from cache.__main__ import main
from cache.share import catalog
from cache.share.location import Location
from cache.share.push import push
from cache.store.checksums import Checksums
from tests.stores import RECIPE, build_store, recipe_of
from tests.tampering import change_root, make_endless, reseal, unseal

NAME = RECIPE.store_name
GZIP = {"name": "gzip", "configuration": {"level": 1}}


@pytest.fixture
def store(tmp_path) -> Path:
    return unseal(build_store(tmp_path / "here"))


def output_of_all(store: Path, tmp_path: Path, capsys) -> dict[str, str]:
    """What each command prints; none succeeds with such a store, and none prints over a line."""
    output = {}
    for command in (
        ["verify", str(store)],
        ["info", str(store)],
        ["diff", str(store), str(store)],
        ["export", str(store), "--to", "h5", str(tmp_path / "x.h5")],
        ["export", str(store), "--to", "npz", str(tmp_path / "x.npz")],
        ["push", str(store), str(tmp_path / "share")],
        ["pull", str(store), "--stores", str(tmp_path / "pulled")],
    ):
        status = main(command)
        out, err = capsys.readouterr()
        assert err.count("\n") <= 1, command
        if status:
            output[command[0]] = out + err
    return output


def metadata(array, **changes):
    """Changes the array's ``zarr.json``; None deletes a key."""

    def change(store: Path) -> None:
        path = store / array / "zarr.json"
        meta = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in meta.items() if v is not None}))

    return change


def content(file, data):
    return lambda store: (store / file).write_bytes(data)


def chunks(array, *shape):
    grid = {"name": "regular", "configuration": {"chunk_shape": shape}}
    return metadata(array, chunk_grid=grid)


def strings(*texts):
    packed = [struct.pack("<I", len(text)) + text.encode() for text in texts]
    return struct.pack("<I", len(texts)) + b"".join(packed)


NO_ARRAYS = {
    "no codecs": metadata("utterances/id", codecs=None),
    "codecs are text": metadata("utterances/id", codecs="x"),
    "codecs are a list of text": metadata("audio/values", codecs=["bytes"]),
    "a codec of numbers": metadata("utterances/id", codecs=[{"name": "bytes"}]),
    "big-endian": metadata(
        "audio/values", codecs=[{"name": "bytes", "configuration": {"endian": "big"}}]
    ),
    "compressed table": metadata("utterances/id", codecs=[{"name": "vlen-utf8"}, GZIP]),
    "compressed features": metadata("audio/values", codecs=[{"name": "bytes"}, GZIP]),
    "no shape": metadata("utterances/status", shape=None),
    "shape is text": metadata("utterances/id", shape="5"),
    "shape of shapes": metadata("utterances/id", shape=[[5]]),
    "negative shape": metadata("utterances/id", shape=[-5]),
    "one more dimension": metadata("audio/offsets", shape=[6, 1]),
    "huge": metadata("audio/values", shape=[10**15, 3]),
    "chunks of nothing": chunks("audio/values", 0, 3),
    "negative chunks": chunks("audio/values", -1, 3),
    "no type": metadata("utterances/duration", data_type=None),
    "unknown type": metadata("audio/values", data_type="nonsense"),
    "type of a table": metadata("audio/values", data_type={"name": "x"}),
    "features are text": metadata("audio/values", data_type="string"),
    "offsets are fractions": metadata("audio/offsets", data_type="float64"),
    "a list": content("utterances/id/zarr.json", b"[1]"),
    "deep": content("audio/values/zarr.json", b"[" * 200_000),
    "no UTF-8": content("audio/values/zarr.json", b"\xff\xfe{"),
}


@pytest.mark.parametrize("change", NO_ARRAYS.values(), ids=NO_ARRAYS)
def test_metadata_of_no_array_is_one_clear_line_everywhere(tmp_path, store, change, capsys):
    change(store)
    reseal(store)
    output = output_of_all(store, tmp_path, capsys)
    assert {"verify", "push", "pull"} <= output.keys()
    assert all("/zarr.json" in output[command] for command in ("verify", "push", "pull"))
    assert not (tmp_path / "pulled" / "toy" / NAME).exists()


def offsets(*values):
    return content("audio/offsets/c/0", np.array(values, "<i8").tobytes())


CONTRADICTIONS = {
    "offsets fall": offsets(0, -5, 3, 4, 5, 9),
    "offsets leap": offsets(0, 2**62, 3, 4, 5, 9),
    "offsets reach out": offsets(0, 0, 3, 4, 5, 2**62),
    "offsets start late": offsets(4, 4, 6, 9, 9, 9),
    "fewer ids": content("utterances/id/c/0", strings("a")),
    "ids twice": content("utterances/id/c/0", strings(*"aaaaa")),
    "fewer statuses": content("utterances/status/c/0", strings("ok")),
    "unknown status": content("utterances/status/c/0", strings(*"?????")),
    "strings without end": content("utterances/id/c/0", b"\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("change", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_table_that_contradicts_itself_is_one_clear_line(tmp_path, store, change, capsys):
    change(store)
    reseal(store)
    output = output_of_all(store, tmp_path, capsys)
    assert {"verify", "diff", "export", "push"} <= output.keys()
    for command in ("verify", "diff", "export", "push"):
        shown = output[command]
        assert "inconsistent with the rest" in shown or "cannot be read" in shown


@pytest.mark.parametrize("harm", ["endless", "sparse", "pipe"])
@pytest.mark.parametrize("name", ["zarr.json", "utterances/id/zarr.json", "utterances/id/c/0"])
def test_looking_reads_no_more_than_there_may_be(store, name, harm, capsys):
    path = store / name
    make_endless(path, harm)
    assert main(["info", str(store)]) == 1
    assert name in capsys.readouterr().err


def test_metadata_of_gigabytes_is_refused_by_its_listed_size():
    listed = {"zarr.json": {"bytes": 10**9, "sha256": "ab" * 32}}
    raw = json.dumps({"algorithm": "sha256", "files": listed}).encode()
    with pytest.raises(ValueError, match=r"zarr\.json has 1000000000 bytes"):
        Checksums.parse(raw, "it")


@pytest.mark.parametrize("text", ["\ud800", "a\nb", "\x1b[2J"])
def test_no_file_of_a_store_is_called_so(text):
    good = {"bytes": 3, "sha256": "ab" * 32}
    listed = {"zarr.json": good, f"audio/{text}": good}
    raw = json.dumps({"algorithm": "sha256", "files": listed}).encode()
    with pytest.raises(ValueError, match="which is not a path inside a store"):
        Checksums.parse(raw, "it")


def test_a_store_that_cannot_be_pulled_keeps_no_other_from_it(tmp_path, store, capsys):
    share, to = tmp_path / "share", tmp_path / "pulled"
    for weights in ("01", "02"):
        recipe = recipe_of(weights=weights)
        push(build_store(tmp_path, recipe=recipe), str(share))
    first, last = sorted((share / "toy").iterdir())
    change_root(unseal(first), lambda root: root["attributes"].update(format_version=3))
    assert main(["pull", str(share), "--all", "--stores", str(to)]) == 1
    assert "install a newer release" in capsys.readouterr().err
    assert (to / "toy" / last.name / "checksums.json").is_file()


# --- what a terminal cannot print or would obey ---------------------------------------------------


def test_a_store_that_no_terminal_can_print_hides_no_other(tmp_path, store, caplog, capsys):
    other = build_store(tmp_path / "here", recipe=recipe_of(weights="01"))
    change_root(unseal(other), lambda root: root["attributes"].update(licence="\ud800"))
    assert main(["list", str(tmp_path / "here")]) == 0
    assert RECIPE.digest[:12] in capsys.readouterr().out
    assert f"{other}: skipping it" in caplog.text
    assert main(["info", str(other)]) == 1
    assert "is not feature-store metadata" in capsys.readouterr().err


def test_text_of_a_store_is_shown_and_not_obeyed(tmp_path, store, capsys):
    output = {"licence": "\x1b[2J gone [/x]", "[/x]": 1}
    change_root(store, lambda root: root["attributes"].update(output))
    push(store, str(tmp_path / "share"))
    assert "\x1b" in catalog.entries(Location.parse(tmp_path / "share"))[0].licence
    for command in ("info", str(store)), ("list", str(tmp_path / "share")):
        assert main(list(command)) == 0
        out = capsys.readouterr().out
        assert "\x1b[2J" not in out
        assert "\\x1b" in out


def test_verify_names_a_file_that_no_terminal_can_print(store, capsys):
    Path(os.fsdecode(os.fsencode(store) + b"/\xff")).touch()
    (store / "audio/values/c/0/0").unlink()
    assert main(["verify", str(store)]) == 1
    out = capsys.readouterr().out
    assert "\\udcff: extra" in out
    assert "audio/values/c/0/0: missing" in out
