"""README and docs: links lead somewhere, command lines parse, configuration keys exist."""

import re
import shlex
from argparse import ArgumentParser
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

import cache.__main__
import extract.__main__
import manifests.__main__
import train.__main__
from train.config import Config
from train.methods import METHODS

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
MAINS: dict[str, Any] = {
    "manifests": manifests.__main__,
    "extract": extract.__main__,
    "cache": cache.__main__,
    "train": train.__main__,
}


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page, re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_a_file_and_a_heading(name):
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", PAGES[name], flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def command_lines(page: str, *commands: str) -> list[str]:
    """The lines of code blocks and the quoted spans of a page that begin with a command."""
    text = page.replace("\\\n", " ")
    start = "|".join(re.escape(command) for command in commands)
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```|^((?:    [^\n]*\n)+)", text, re.M | re.S)
    code = "\n".join(fenced or indented for fenced, indented in blocks)
    lines = re.findall(rf"^(?:    |\$ )?((?:{start})\b.*)$", code, re.M)
    return lines + re.findall(rf"`((?:{start})\b[^`]*)`", text)


def check_parses(stage: str, words: list[str], line: str) -> None:
    """Parse a stage's arguments; a sub-command without arguments is only looked up."""
    parser: ArgumentParser = MAINS[stage].build_parser(f"semanticmac {stage}")
    if len(words) < 1 + (stage != "extract"):
        with pytest.raises(SystemExit, match="0"):
            parser.parse_args([*words, "--help"])
    else:
        _, rest = parser.parse_known_args(words)
        assert all("=" in word for word in rest), line  # keys that follow an option


KEY = re.compile(r"([a-z_]+(?:\.[a-z_0-9]+)*)=")


def keys_of(kind: Any, prefix: str = "") -> set[str]:
    """The keys of a configuration dataclass and of the dataclasses inside."""
    found = set()
    for field in fields(kind):
        key = prefix + field.name
        value = field.default_factory() if callable(field.default_factory) else None
        found |= keys_of(type(value), f"{key}.") if is_dataclass(value) else {key}
    return found


STUDY_KEYS = {"seeds", "methods", "ablations", "trials", "width"}
OPTIONS = {f"options.{option.name}" for cls in METHODS.values() for option in fields(cls.Options)}
KEYS = keys_of(Config) | OPTIONS | STUDY_KEYS


@pytest.mark.parametrize("name", PAGES)
def test_command_lines_parse(name):
    defined = {f"options.{key}" for key in re.findall(r"^ {4,8}(\w+): .* = ", PAGES[name], re.M)}
    for line in command_lines(PAGES[name], "semanticmac", *(f"python -m {s}" for s in MAINS)):
        words = shlex.split(re.sub(r"\.\.\.|\u2026", "", line), comments=True)
        words = words[1:] if words[0] == "semanticmac" else words[2:]
        if not words or words[0] not in MAINS:  # semanticmac STAGE, semanticmac --help
            continue
        check_parses(words[0], words[1:], line)
        if words[0] == "train":
            keys = {found[1] for word in words if (found := KEY.match(word))}
            assert keys <= KEYS | defined, line


@pytest.mark.parametrize("name", PAGES)
def test_targets_and_benchmarks_exist(name):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for line in command_lines(PAGES[name], "make"):
        words = shlex.split(line, comments=True)
        for word in words[1:]:
            benchmark = ROOT / "benchmarks" / f"{word.removeprefix('bench-')}.py"
            assert "=" in word or word in targets or benchmark.exists(), line
    for line in command_lines(PAGES[name], "python -m benchmarks"):
        module, *words = shlex.split(line, comments=True)[2:]
        files = f"{module.replace('.', '/')}.py", "benchmarks/command_line.py"
        source = "".join((ROOT / file).read_text(encoding="utf-8") for file in files)
        assert all(f'"{w}"' in source for w in words if w.startswith("--")), line
