"""Documentation pages: keys match the schema, commands compose, and measured tables belong to their text."""

from __future__ import annotations

import re
import runpy
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra.types import RunMode

from runner.cli import VERBS
from runner.config import introspection
from runner.config.compose import compose
from runner.config.constraints import world_size_problems
from runner.config.hydra_adapter import hydra_session
from runner.config.schema import Config
from runner.sweep import search_space
from runner.sweep.arguments import Words, sort

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_the_page_of_keys_is_up_to_date() -> None:
    """Fix with `make docs`."""
    page = runpy.run_path(str(DOCS / "generate.py"))["page"]()
    assert (DOCS / "config.md").read_text(encoding="utf-8") == page


def test_the_page_of_exactness_has_the_text_of_its_program_and_no_deviation() -> None:
    """Fix with `make exactness`."""
    program = runpy.run_path(str(DOCS / "exactness.py"))
    page = (DOCS / "exactness.md").read_text(encoding="utf-8")
    texts = re.split(r"\{\w+\}", program["TEXT"])
    assert re.fullmatch(".*".join(map(re.escape, texts)), page, re.DOTALL)
    hashes = [re.findall(r"`(\w{8})`", row) for row in page.splitlines() if re.search(r"float(32|64) \| `", row)]
    assert len(hashes) == len(program["RULES"]) * len(program["DTYPES"])
    assert all(len(row) == len(program["EXACT_SIZES"]) and len(set(row)) == 1 for row in hashes)
    assert len(re.findall(r"[1-9]\d* met, 0 missed, 0 failed, ", page)) == len(program["PARITY"])


def commands(page: Path) -> list[str]:
    """Return the commands in a page's code blocks that start a new run or sweep.

    Verbs, commands that need an existing run, and commands with shell variables are left out.
    """
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    starts = [line for line in lines if re.match(r"(python|torchrun .*) -m runner .*=", line)]
    return [line for line in starts if not re.search(rf"resume=|rerun|\$|-m runner ({'|'.join(VERBS)})\b", line)]


PAGES = [ROOT / "README.md", DOCS / "scaling.md", DOCS / "sweeps.md", DOCS / "known_answers.md"]


def sorted_arguments(command: str) -> Words:
    """Return the arguments of a command, which starts one run or a sweep, sorted as those of a sweep."""
    arguments = shlex.split(command, comments=True)
    return sort([argument for argument in arguments[arguments.index("runner") + 1 :] if argument != "-m"], None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_can_be_run(page: Path) -> None:
    found = commands(page)
    assert len(found) >= 5
    for command in found:
        config = compose(sorted_arguments(command).sample, None).config
        started = re.search(r"--nproc-per-node (\d+)", command)
        size = int(started[1]) if started else config.launch.processes * config.launch.nodes
        assert world_size_problems(config, size) == [], command


def test_the_launchers_sweepers_and_search_spaces_of_the_pages_are_valid() -> None:
    absent = [name for name in ("submitit", "ray") if find_spec(f"hydra_plugins.hydra_{name}_launcher") is None]
    sweeps = [
        arguments for page in PAGES for command in commands(page) if (arguments := sorted_arguments(command)).hydra
    ]
    assert len(sweeps) >= 10
    for arguments in sweeps:
        if any(name in argument for name in absent for argument in arguments.hydra):
            continue
        with hydra_session() as hydra:
            hydra.compose_config("sweep", arguments.hydra, RunMode.MULTIRUN)
        if "hydra/sweeper=optuna" in arguments.hydra:
            assert search_space.read(arguments.task)[1] == []


def test_the_page_of_sweeps_lists_the_keys_in_which_vmapped_trials_may_differ() -> None:
    section = (DOCS / "sweeps.md").read_text(encoding="utf-8").partition("## Side by side")[2].partition("\n## ")[0]
    listed = {name for row in section.splitlines() if row.startswith("|") for name in re.findall(r"`([\w.]+)`", row)}
    lanes = {name for name in introspection.paths(Config) if introspection.is_lane(Config, name)}
    assert listed == {*lanes, "model.start"}
