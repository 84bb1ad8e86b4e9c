"""What files, stores and shares of others say is printed, and does not control the terminal."""

import ast
import io
import json
import logging
from pathlib import Path

import pandas as pd
import pytest
from rich.table import Table
from rich.text import Text

from cache.__main__ import main
from cache.share import catalog
from cache.share.location import Location
from cache.share.push import push
from extract.__main__ import main as extract_main
from manifests import Card, Manifest
from manifests.__main__ import main as manifests_main
from manifests.console import Console
from manifests.printing import escape_controls, get_logger, say
from tests.stores import build_store, recipe_of
from tests.tampering import change_root, unseal
from train.__main__ import main as train_main

ROOT = Path(__file__).parent.parent
STAGES = ("semanticmac", "manifests", "extract", "cache", "train")
OTHER_WAYS = {"print", "logging.getLogger", "logging.warning", "warnings.warn"}
EVIL = "\x1b]0;owned\x07\x1b[31m\x9b2J\r\u202egnp.\u2066\u200b"
MARKUP = "[link=http://x]a[/link][/nothing] :smile:"


def is_harmless(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


# --- the three ways out ---------------------------------------------------------------------------


def test_control_characters_and_marks_of_direction_are_escaped():
    assert not is_harmless(EVIL)
    assert is_harmless(escape_controls(EVIL))
    assert escape_controls("é 中 😀\n") == "é 中 😀\n"
    assert escape_controls("a\u202eb\x1b") == "a\\u202eb\\x1b"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_console_prints_what_it_is_given(terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, color_system=None, width=200)
    table = Table("heading", title=EVIL)
    table.add_row(EVIL, style="bold")
    table.add_row(Text(EVIL))
    table.add_row(MARKUP)
    table.add_row(Text(MARKUP))
    for what in (EVIL, Text(EVIL), table, MARKUP, Text(MARKUP)):
        console.print(what)
    assert is_harmless(out.getvalue())
    assert out.getvalue().count(MARKUP) == 4
    assert out.getvalue().count("\\u202egnp.") == 5
    lines = [line for line in out.getvalue().splitlines() if line.startswith(("│", "┃"))]
    assert len({len(line) for line in lines if "u202e" not in line}) == 1


def test_styles_are_kept():
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="standard").print(Text("a", style="red"))
    assert "\x1b[31m" in out.getvalue()


def test_every_logger_escapes_whoever_handles_its_messages(capsys):
    log, out = get_logger("cache.of_a_test"), io.StringIO()
    assert get_logger("cache.of_a_test") is log
    assert len(log.filters) == 1
    handler = logging.StreamHandler(out)
    log.addHandler(handler)
    try:
        log.warning("%s and %d", EVIL, 5)
        log.warning("100% " + EVIL)
    finally:
        log.removeHandler(handler)
    assert is_harmless(out.getvalue())
    assert "and 5" in out.getvalue()
    say(EVIL)
    say(EVIL, error=True)
    said = capsys.readouterr()
    assert is_harmless(said.out + said.err)
    assert said.err


def test_there_is_no_other_way_out():
    """No module prints, makes a console or a logger by itself."""
    wrong = []
    for path in (p for stage in STAGES for p in sorted((ROOT / stage).rglob("*.py"))):
        name = path.relative_to(ROOT).as_posix()
        if name in ("manifests/printing.py", "manifests/console.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
                wrong += [f"{name} imports {a.name}" for a in node.names if a.name == "Console"]
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                written = called.endswith((".stdout.write", ".stderr.write"))
                if called in OTHER_WAYS or written:
                    wrong.append(f"{name}:{node.lineno} calls {called}")
    assert not wrong


# --- commands -------------------------------------------------------------------------------------


@pytest.fixture
def evil_store(tmp_path) -> Path:
    """Ids, licence and creator that try to control the terminal."""
    store = build_store(tmp_path / "here", {f"a{EVIL}": (2, 2), f"b{MARKUP}": (0, 0)})

    def change(root) -> None:
        root["attributes"] |= {"licence": EVIL, "creator": MARKUP, EVIL: EVIL}

    change_root(unseal(store), change)
    return store


def test_commands_of_the_cache(tmp_path, evil_store, capsys, caplog):
    other = build_store(tmp_path / "other", {f"a{EVIL}": (3, 2), f"c{EVIL}": (1, 1)})
    share = str(tmp_path / f"share{MARKUP.replace('/', '')}\x1b[2J")
    assert main(["info", str(evil_store)]) == 0
    assert main(["push", str(evil_store), share]) == 0
    assert main(["list", share]) == 0
    assert main(["pull", share, "--stores", str(tmp_path / "pulled\u202e")]) == 0
    assert main(["diff", str(evil_store), str(other)]) == 1
    chunk = evil_store / "audio/values/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    (evil_store / f"x{EVIL}").write_text("")
    assert main(["verify", str(evil_store)]) == 1
    assert main(["gc", "--mirror", str(tmp_path / EVIL.replace("\0", ""))]) == 1
    assert main(["export", str(evil_store), "--to", "npz", str(tmp_path / f"{EVIL}.npz")]) in (0, 1)
    said = capsys.readouterr()
    assert is_harmless(said.out + said.err + caplog.text)
    assert said.out.count("owned") > 3


def test_warnings_of_a_share(tmp_path, evil_store, caplog):
    share = str(tmp_path / "share")
    push(evil_store, share)
    entry = {**json.loads(next(Path(share, "catalog/toy").iterdir()).read_text()), "dataset": EVIL}
    Path(share, "catalog/toy/x.zarr.json").write_text(json.dumps(entry))
    catalog.entries(Location.parse(share))
    assert "owned" in caplog.text
    assert is_harmless(caplog.text)


def test_commands_of_the_other_stages(tmp_path, capsys, caplog):
    card = Card("toy", f"Toy {EVIL}{MARKUP}", "classification", classes=["a", EVIL], licence=EVIL)
    columns = {"id": [f"u{EVIL}", "v"], "video": ["a.mp4", EVIL], "split": "train"}
    table = pd.DataFrame({**columns, "text": f"{EVIL}{MARKUP}", "label": [EVIL, "a"]})
    Manifest(card, table, None).save(tmp_path / "toy")
    manifests_main(["show", str(tmp_path / "toy")])
    manifests_main(["check", str(tmp_path / "toy")])
    extract_main([str(tmp_path / "toy"), "--stores", str(tmp_path / EVIL), "--workers", "1"])
    train_main(["fit", f"dataset={tmp_path / 'toy'}", f"stores={tmp_path / EVIL}"])
    train_main(["evaluate", str(tmp_path / EVIL)])
    said = capsys.readouterr()
    assert is_harmless(said.out + said.err + caplog.text)
    assert "owned" in said.out
    assert "owned" in said.err


def test_a_share_of_another_recipe_is_named_harmlessly(tmp_path, capsys):
    recipe = recipe_of(settings={EVIL: EVIL})
    store = build_store(tmp_path / "here", recipe=recipe)
    assert main(["diff", str(store), str(build_store(tmp_path / "other"))]) == 1
    assert is_harmless(capsys.readouterr().out)
