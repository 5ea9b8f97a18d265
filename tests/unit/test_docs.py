"""Documentation pages: keys match the schema, commands compose, and measured tables belong to their text."""

from __future__ import annotations

import re
import runpy
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra.types import RunMode

import runner
from runner import cli
from runner.commands import VERBS
from runner.config import introspection, trust
from runner.config.compose import compose
from runner.config.constraints import world_size_problems
from runner.config.expression import COMPUTE
from runner.config.hydra_adapter import hydra_session
from runner.config.schema import Config
from runner.sweep import search_space
from runner.sweep.arguments import SweepArguments, classify

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_the_page_of_keys_is_up_to_date() -> None:
    """Fix with `make docs`."""
    page = runpy.run_path(str(DOCS / "generate.py"))["page"]()
    assert (DOCS / "config.md").read_text(encoding="utf-8") == page


def test_the_page_of_the_api_is_up_to_date_and_lists_what_is_exported() -> None:
    """Mend with `make docs`."""
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert page == runpy.run_path(str(DOCS / "api.py"))["page"]()
    assert sorted(re.findall(r"^(?:### |\| )`runner\.(\w+)`", page, re.MULTILINE)) == sorted(runner.__all__)


def test_the_page_of_exactness_has_the_text_of_its_program_and_keeps_its_promises() -> None:
    """Mend with `make exactness`."""
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


PAGES = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in ("guide", "scaling", "sweeps", "known_answers"))]


def sorted_arguments(command: str) -> SweepArguments:
    """The words of a command, whether it starts one run or a sweep, by what they are for."""
    words = shlex.split(command, comments=True)
    arguments, _ = trust.split(words[words.index("runner") + 1 :])
    return classify([word for word in arguments if word != "-m"], None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_can_be_run(page: Path) -> None:
    found = commands(page)
    assert len(found) >= 5
    for command in found:
        config = compose(sorted_arguments(command).sample, None).config
        started = re.search(r"--nproc-per-node (\d+)", command)
        size = int(started[1]) if started else config.launch.processes * config.launch.nodes
        assert world_size_problems(config, size) == [], command


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(DOCS.glob("*.md")), ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name
)
def test_the_links_of_a_page_lead_to_files_and_headings(page: Path) -> None:
    for target, _, heading in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles], heading


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_refusals_of_a_page_are_those_of_the_program(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, refusal in re.findall(
        r"^\$ python -m runner (.*)\n((?:error: .*\n)+)", page.read_text(encoding="utf-8"), re.MULTILINE
    ):
        assert cli.main(shlex.split(command)) == 2
        assert capsys.readouterr().err == refusal


@pytest.mark.parametrize("page", [ROOT / "SECURITY.md", DOCS / "reliability.md"], ids=lambda page: page.name)
def test_the_tests_of_a_page_exist(page: Path) -> None:
    """A name alone is of a test in tests/faults; after a file, each name up to the next file is in that file."""
    files = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py")}
    faults = "\n".join(text for name, text in files.items() if name.startswith("tests/faults/"))
    found = 0
    for line in page.read_text(encoding="utf-8").splitlines():
        text = faults
        for name in re.findall(r"`(tests/\S+\.py|test_\w+)`", line):
            if name.startswith("tests/"):
                text = files[name]
            else:
                assert f"def {name}(" in text, name
                found += 1
    assert found >= 20


def test_the_launchers_and_sweepers_of_the_pages_can_be_composed_and_their_spaces_read() -> None:
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


def test_the_page_of_sweeps_lists_the_keys_that_may_differ_in_a_program() -> None:
    section = (DOCS / "sweeps.md").read_text(encoding="utf-8").partition("## Vmapped trials")[2].partition("\n## ")[0]
    listed = {name for row in section.splitlines() if row.startswith("|") for name in re.findall(r"`([\w.]+)`", row)}
    lanes = {name for name in introspection.paths(Config) if introspection.is_lane(Config, name)}
    assert listed == {*lanes, "model.start"}


def test_the_guide_lists_every_function_and_operator_of_formulas() -> None:
    guide = (DOCS / "guide.md").read_text(encoding="utf-8")
    table = guide.partition("## Formulas and names")[2].partition("A name begins")[0]
    listed = set(" ".join(re.findall("`([^`]+)`", table)).replace("(", " ( ").split())
    assert set(COMPUTE) - {"neg"} <= listed
    assert "pi" in listed
