"""The architecture page names files, functions and floors that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "runner"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w./]+\.(?:py|yaml))(?::([\w.]+))?`", PAGE)))


@cache
def names(file: Path) -> set[str]:
    """Functions and classes of a module, with the methods and fields of its classes as `Class.name`."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
    return found


def is_there(path: str, name: str) -> bool:
    """Whether a file exists, below the package or the repository, and has this function, class or method."""
    file = next((folder / path for folder in (PACKAGE, ROOT) if (folder / path).is_file()), None)
    return file is not None and (not name or name in names(file))


def test_every_file_and_function_that_the_page_names_exists() -> None:
    assert len(NAMED) >= 50
    assert [f"{path}:{name}" for path, name in NAMED if not is_there(path, name)] == []


def test_folders_and_links_exist() -> None:
    folders = re.findall(r"`([\w/]+/)`", PAGE)
    assert folders
    assert all((PACKAGE / folder).is_dir() or (ROOT / folder).is_dir() for folder in folders)
    links = re.findall(r"\]\(([\w./]+)", PAGE)
    assert all((ROOT / "docs" / link).is_file() for link in links)


def test_the_floors_are_those_that_lint_imports_checks() -> None:
    drawn = {int(line[0]): line for line in PAGE.splitlines() if re.match(r"\d │", line)}
    layers = re.search(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    assert layers is not None
    rooms = [re.findall(r"runner\.(\w+)", line) for line in layers[1].splitlines()]
    assert rooms.pop(0) == ["cli", "sklearn"]
    for floor, expected in zip(sorted(drawn, reverse=True), rooms, strict=True):
        words = re.findall(r"\w+", drawn[floor])[1:]
        assert words[: len(expected)] == expected


def test_every_room_has_a_sentence() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    described = set(re.findall(r"^\* \*\*(\w+)\*\* ", PAGE, re.MULTILINE))
    assert described | {"errors"} == folders | {"errors"}
