"""The pages say what the program does: keys are those of the schema, commands compose, measured tables belong to their text."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from runner.combinations import misplaced
from runner.compose import compose

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_the_page_of_keys_is_up_to_date() -> None:
    """Mend with `make docs`."""
    page = runpy.run_path(str(DOCS / "generate.py"))["page"]()
    assert (DOCS / "config.md").read_text(encoding="utf-8") == page


def test_the_page_of_exactness_has_the_text_of_its_program_and_keeps_its_promises() -> None:
    """Mend with `make exactness`."""
    program = runpy.run_path(str(DOCS / "exactness.py"))
    page = (DOCS / "exactness.md").read_text(encoding="utf-8")
    texts = re.split(r"\{\w+\}", program["TEXT"])
    assert re.fullmatch(".*".join(map(re.escape, texts)), page, re.DOTALL)
    hashes = [re.findall(r"`(\w{8})`", row) for row in page.splitlines() if re.search(r"float(32|64) \| `", row)]
    assert len(hashes) == len(program["RULES"]) * len(program["DTYPES"])
    assert all(len(row) == len(program["EXACT_SIZES"]) and len(set(row)) == 1 for row in hashes)


def commands(page: Path) -> list[str]:
    """The commands of a page's blocks that start a new run; those that need a run, or a shell's variables, are left out."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    starts = [line for line in lines if re.match(r"(python|torchrun .*) -m runner .*=", line)]
    return [line for line in starts if not re.search(r"resume=|rerun|\$", line)]


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "scaling.md"], ids=lambda page: page.name)
def test_the_commands_of_a_page_can_be_run(page: Path) -> None:
    found = commands(page)
    assert len(found) >= 5
    for command in found:
        words = shlex.split(command, comments=True)
        config = compose(words[words.index("runner") + 1 :], None).config
        started = re.search(r"--nproc-per-node (\d+)", command)
        size = int(started[1]) if started else config.launch.processes * config.launch.nodes
        assert misplaced(config, size) == [], command
