"""What describes the project says the same everywhere: version, licence, Pythons, extras, tools."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

import runner

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_citation_is_complete_and_has_the_version_and_the_licence() -> None:
    citation = read("CITATION.cff")
    assert {"cff-version", "message", "title", "type", "version", "license", "authors"} <= citation.keys()
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert (citation["version"], citation["license"]) == (runner.__version__, "MIT")
    assert re.search(r'^license = "MIT"$', PROJECT, re.MULTILINE)
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")
    assert all(author["name"] in PROJECT for author in citation["authors"])


def test_the_change_log_has_the_version() -> None:
    versions = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == runner.__version__


def test_the_workflow_runs_what_a_checkout_must_pass_on_every_python() -> None:
    (job,) = read(".github/workflows/test.yml")["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert job["timeout-minutes"] > 0


def test_the_hooks_are_local_and_call_the_tools_of_make_check() -> None:
    (source,) = read(".pre-commit-config.yaml")["repos"]
    assert source["repo"] == "local"
    assert {hook["language"] for hook in source["hooks"]} == {"system"}
    checked = re.search(r"^check: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert checked is not None
    tools = re.findall(r"\$\(BIN\)/([\w-]+)", checked[1])
    assert {hook["entry"].split()[0] for hook in source["hooks"]} == set(tools) - {"deptry"}


def test_the_script_of_the_workflow_is_executable() -> None:
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_the_dev_extra_has_every_other_one_but_ray() -> None:
    extras = re.search(r"^\[project.optional-dependencies\]\n(.*?)^\[", PROJECT, re.MULTILINE | re.DOTALL)
    assert extras is not None
    names = set(re.findall(r"^(\w+) = \[", extras[1], re.MULTILINE)) - {"dev", "ray"}  # ray: see pyproject.toml
    included = re.search(r'"runner\[([\w,]+)\]"', extras[1])
    assert included is not None
    assert set(included[1].split(",")) == names
