"""docs/add-a-method.md, followed to the letter in a copy of this project; docs/baselines.md."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.datasets import FAST, write_scores
from train.methods import METHODS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = "".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)).splitlines()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The packages with the document's file and line, and a small dataset called demo."""
    root = tmp_path_factory.mktemp("project")
    leave = shutil.ignore_patterns("__pycache__")
    for package in ("cache", "manifests", "train", "tests"):
        shutil.copytree(ROOT / package, root / package, ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", root)
    file, imported, line = PYTHON
    (path,) = re.findall(r"Write this as\s+`(.*?)`", TEXT)
    (root / path).write_text(file, encoding="utf-8")
    registry = root / "train" / "methods" / "__init__.py"
    table, end = "METHODS: dict[str, type[Method]] = {\n", "\n}\n"
    head, tail = registry.read_text(encoding="utf-8").split(table)
    tail = tail.replace(end, f"\n{line}}}\n", 1)
    head = head.replace("from train.task import", f"{imported}from train.task import")
    registry.write_text(head + table + tail, encoding="utf-8")
    write_scores(root, "demo")
    return root


RUN_EACH = """
import runpy, shlex, sys

for command in sys.argv[1:]:
    python, m, *sys.argv = shlex.split(command)
    assert (python, m) == ("python", "-m")
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.fixture(scope="module")
def output(project):
    """The output of the document's commands; those that train are made small.

    One process runs them all, because importing PyTorch takes longer than the commands.
    """
    small = " ".join([*FAST, "train.epochs=1"])
    commands = [f"{line} {small}" if " -m train " in line else line for line in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH, *commands],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.usefixtures("output")
def test_the_method_trains_with_its_option(project):
    (folder,) = (project / "runs" / "demo" / "vote").iterdir()
    history = json.loads((folder / "metrics.json").read_text())["history"]
    assert {"train/task_t", "train/task_a", "train/task_v"} <= set(history[0])
    table = pd.read_parquet(folder / "predictions.parquet")
    assert table["disagreement"].gt(0).all()
    assert "each: 0.5" in (folder / "config.yaml").read_text()


def test_the_tests_of_every_method_test_it(output):
    assert re.search(r"\d passed", output)
    assert len(COMMANDS) == 2


def test_every_method_is_in_the_table_of_papers():
    table = (ROOT / "docs" / "baselines.md").read_text(encoding="utf-8")
    for name, method in METHODS.items():
        assert f"`{name}`" in table
        assert f"`{method.__module__.rpartition('.')[2]}.py`" in table
