"""Imports run one way, between the stages and between the folders of each stage."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("semanticmac", "manifests", "extract", "cache", "train")
MAY_IMPORT = {
    "semanticmac": set(),
    "manifests": set(),
    "cache": set(),
    "extract": {"manifests", "cache"},
    "train": {"manifests", "cache"},
}
PAPER = {f"train.model.{name}" for name in ("perceiver", "sgfi", "sclg", "sccl", "neighbours")}
"""The modules of the paper's method; other methods build on layers and frames."""
MUST_NOT_IMPORT = {  # per folder: what is above it; the whole stage means all but the folder
    "extract.encoders": {"extract.block", "extract.engine", "extract.scheduler"},
    "cache": {"cache.share", "cache.convert"},
    "cache.store": {"cache"},
    "cache.share": {"cache.convert"},
    "cache.convert": {"cache.share"},
    "train": {"train.study", "train.predict"},
    "train.model": {"train.data", "train.fit", "train.methods", "train.study", "train.predict"},
    "train.methods": {"train.fit", "train.study", "train.predict", *PAPER},
    "train.study": {"train.predict"},
    "train.predict": {"train.fit", "train.study"},
}
LATE_EXCEPTIONS = {
    ("train/predict/predict.py", "extract"),
    ("cache/open.py", "cache.share"),
    ("cache/at_hand.py", "cache.share"),
    ("cache/source_commands.py", "cache.share"),
    *(("semanticmac/__main__.py", f"{stage}.__main__") for stage in STAGES[1:]),
}
"""A file, and what it may import inside a function."""
EXCEPTIONS = LATE_EXCEPTIONS | {
    ("cache", "manifests.budget"),
    ("cache", "manifests.command_line"),
    ("cache", "manifests.console"),
    ("cache", "manifests.printing"),
    ("cache", "manifests.lazy_imports"),
    ("cache/convert", "manifests"),
    ("cache/source_commands.py", "manifests"),
    ("cache/store/disk.py", "manifests.atomic"),
    ("train/methods/semanticmac.py", "train.model"),
    # These read audio and vision as SemanticMAC does.
    ("train/methods/mre.py", "train.model.perceiver"),
    ("train/methods/probe.py", "train.model.perceiver"),
    ("train/methods/unimodal.py", "train.model.perceiver"),
}
"""A file or a folder, and what all in it may import."""
WRONG = [
    ("manifests/card.py", "cache.reader"),
    ("extract/job.py", "train.fit"),
    ("extract/encoders/embedded.py", "extract.engine"),
    ("cache/store/disk.py", "manifests.card"),
    ("cache/store/publish.py", "cache.share.push"),
    ("cache/store/publish.py", "cache.reader"),
    ("cache/share/pull.py", "cache.convert.export"),
    ("cache/convert/export.py", "cache.share.push"),
    ("cache/reader.py", "cache.share.mirror"),
    ("train/fit.py", "train.study.study"),
    ("train/fit.py", "train.predict.predict"),
    ("train/model/sgfi.py", "train.methods"),
    ("train/model/sgfi.py", "train.study.study"),
    ("train/model/sgfi.py", "train.predict.predict"),
    ("train/methods/mult.py", "train.model.sgfi"),
    ("train/study/study.py", "train.predict.predict"),
    ("train/predict/predict.py", "train.fit"),
    ("train/predict/predict.py", "train.study.study"),
]
"""Files, and modules that they must not import: one pair for each rule."""
MODULES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for stage in STAGES
    for path in sorted((ROOT / stage).rglob("*.py"))
}


def dotted(name: str) -> str:
    """The module at a path: ``train.study`` for ``train/study/__init__.py``."""
    return name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


NAMES = {dotted(name) for name in MODULES}


def imports(tree: ast.Module, when: Callable[[ast.AST], Iterable[ast.AST]] = ast.walk) -> set[str]:
    """The modules of the project that a file imports; names of a module count as the module."""
    found = set()
    for node in when(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = {f"{node.module}.{alias.name}" for alias in node.names} & NAMES
            found |= modules or {node.module}
    return {name for name in found if name.split(".")[0] in STAGES}


def is_in(module: str, folder: str) -> bool:
    return module == folder or module.startswith(f"{folder}.")


def excepted(name: str, module: str) -> bool:
    return any(is_in(dotted(name), dotted(f)) and is_in(module, of) for f, of in EXCEPTIONS)


def wrong_between_the_stages(trees: dict[str, ast.Module]) -> list[str]:
    return [
        f"{name} imports {module}"
        for name, tree in trees.items()
        for module in imports(tree)
        if module.split(".")[0] not in MAY_IMPORT[name.split("/")[0]] | {name.split("/")[0]}
        and not excepted(name, module)
    ]


def wrong_inside_a_stage(trees: dict[str, ast.Module]) -> list[str]:
    wrong = []
    for name, tree in trees.items():
        folder = dotted(str(Path(name).parent))
        above = {*MUST_NOT_IMPORT.get(folder, ()), f"{folder.split('.')[0]}.__main__"}
        wrong += [
            f"{name} imports {module}"
            for module in imports(tree)
            if any(
                is_in(module, x) and not (is_in(folder, x) and is_in(module, folder)) for x in above
            )
            and not excepted(name, module)
            and not name.endswith("__main__.py")
        ]
    return wrong


def test_imports_between_the_stages_run_one_way():
    assert not wrong_between_the_stages(MODULES)


def test_imports_inside_a_stage_run_one_way():
    assert not wrong_inside_a_stage(MODULES)


def test_a_wrong_import_is_found():
    for name, module in WRONG:
        assert name in MODULES
        assert module in NAMES
        tree = {name: ast.parse(f"def function():\n    import {module}")}
        found = wrong_between_the_stages(tree) + wrong_inside_a_stage(tree)
        assert found == [f"{name} imports {module}"]


def test_no_import_is_relative():
    """The rules above read absolute names."""
    assert not [
        name
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def test_every_folder_of_a_rule_exists():
    named = set(MUST_NOT_IMPORT) | {x for above in MUST_NOT_IMPORT.values() for x in above}
    assert named <= NAMES


@pytest.mark.parametrize(("place", "target"), sorted(EXCEPTIONS))
def test_an_exception_is_in_use(place, target):
    trees = [tree for name, tree in MODULES.items() if is_in(dotted(name), dotted(place))]
    assert any(is_in(module, target) for tree in trees for module in imports(tree))


@pytest.mark.parametrize(("name", "target"), sorted(LATE_EXCEPTIONS))
def test_a_late_exception_imports_when_it_is_called(name, target):
    at_the_top = imports(MODULES[name], ast.iter_child_nodes)
    assert not any(is_in(module, target) for module in at_the_top)


def test_the_atomic_writes_that_every_store_needs_cost_no_import():
    """They need nothing but the standard library."""
    loaded = "import sys, manifests.atomic; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", loaded], text=True).split()
    assert not {"pandas", "numpy", "yaml"} & set(modules)


def check_circles() -> None:
    """Raise a CycleError that names the modules of a circle; a module may import its package."""
    needs = {dotted(name): imports(tree) for name, tree in MODULES.items()}
    for name, modules in needs.items():
        modules.discard(name.rpartition(".")[0])
    assert sum(map(len, needs.values())) > len(NAMES)
    TopologicalSorter(needs).prepare()


def test_no_module_imports_in_a_circle(monkeypatch):
    """Not even when a function is called."""
    check_circles()
    reader = MODULES["cache/reader.py"]
    assert "cache.features" in imports(reader)
    monkeypatch.setitem(MODULES, "cache/features.py", ast.parse("import cache.reader"))
    with pytest.raises(CycleError, match=r"cache\.reader"):
        check_circles()


def test_no_module_has_a_catch_all_name():
    drawers = {"utils", "util", "common", "helpers", "core", "base", "misc"}
    assert not [name for name in MODULES if Path(name).stem in drawers]


def test_no_test_uses_a_private_name_of_the_project():
    private = re.compile(r"_(?!_)\w+")
    wrong = []
    for path in sorted((ROOT / "tests").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in STAGES:
                wrong += [f"{path.name}: {x.name}" for x in node.names if private.match(x.name)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # monkeypatch
                stage, *rest = node.value.split(".")
                if stage in STAGES and any(map(private.fullmatch, rest)):
                    wrong.append(f"{path.name}: {node.value}")
    assert not wrong
