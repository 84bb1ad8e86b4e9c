"""Imports run one way: extract -> manifests, cache; train -> manifests, cache."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("semanticmac", "manifests", "extract", "cache", "train")
MAY_IMPORT = {
    "semanticmac": set(),  # runs the stages by name
    "manifests": set(),
    "cache": set(),
    "extract": {"manifests", "cache"},
    "train": {"manifests", "cache"},
}
LATE_EXCEPTIONS = {("train/predict/predict.py", "extract")}
"""A file and what it may import inside of a function."""
EXCEPTIONS = LATE_EXCEPTIONS | {
    ("cache/convert", "manifests"),
    ("cache/store/disk.py", "manifests"),
}
"""A file or a folder, and what all in it may import."""
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path, when: Callable[[ast.AST], Iterable[ast.AST]] = ast.walk) -> set[str]:
    names = set()
    for node in when(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names & set(PACKAGES)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_one_way(path):
    name = path.relative_to(ROOT).as_posix()
    package = name.split("/")[0]
    excepted = {p for place, p in EXCEPTIONS if f"{name}/".startswith(f"{place}/")}
    assert imported(path) <= MAY_IMPORT[package] | {package} | excepted


@pytest.mark.parametrize(("place", "package"), sorted(EXCEPTIONS))
def test_an_exception_is_in_use(place, package):
    files = [ROOT / place] if place.endswith(".py") else (ROOT / place).glob("*.py")
    assert package in set().union(*map(imported, files))


def test_every_store_needs_of_manifests_only_the_atomic_writes():
    """And these need nothing but the standard library."""
    tree = ast.parse((ROOT / "cache/store/disk.py").read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in found if name.startswith("manifests")} == {"manifests.atomic"}
    loaded = "import sys, manifests.atomic; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", loaded], text=True).split()
    assert not {"pandas", "numpy", "yaml"} & set(modules)


@pytest.mark.parametrize(("name", "package"), sorted(LATE_EXCEPTIONS))
def test_a_late_exception_imports_when_it_is_called(name, package):
    assert package in imported(ROOT / name)
    assert package not in imported(ROOT / name, ast.iter_child_nodes)


def test_no_module_imports_in_a_circle():
    """Not even when a function is called; but modules may name what their package is."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    needs = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                needs[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                needs[name] |= inside & modules.keys() or {node.module}
        needs[name].discard(name.rpartition(".")[0])
    assert sum(map(len, needs.values())) > len(modules)
    TopologicalSorter(needs).prepare()  # raises a CycleError that names them


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_is_a_drawer_for_odds_and_ends(path):
    assert path.stem not in {"utils", "util", "common", "helpers", "core", "base", "misc"}
