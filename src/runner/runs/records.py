"""Schemas of the JSON files of a run and of a sweep, and how they are read: with every problem named by file and key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from runner.config import versions
from runner.config.documents import checked, faults, read_json
from runner.config.parts import key
from runner.config.validation import shown
from runner.errors import CheckpointError

MAX_PROBLEMS = 20
"""Most problems of a sweep's trials that are reported: there may be thousands of one kind."""

RUN = "run.json"
SUMMARY = "summary.json"
SWEEP = "sweep.json"
CHECKPOINTS = "checkpoints"
"""Name of the folder of checkpoints in a run directory."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """`run.json`."""

    format: int = key("version of the file's form", at_least=1, before=1)
    status: Literal["running", "finished", "failed", "interrupted"] = key("how the run ended, if it has")
    reason: str | None = key("why it did not finish", before=None)
    resumed: int = key("how often it was resumed", at_least=0, before=0)
    pid: int | None = key("process that wrote it last", before=None)
    host: str | None = key("machine of that process", before=None)
    overrides: tuple[str, ...] = key("overrides as typed", before=[])
    config_hash: str | None = key("SHA-256 of the configuration", before=None)
    init_from_sha256: str | None = key("SHA-256 of the parameters that `model.init_from` named", before=None)
    data_sha256: str | None = key("SHA-256 of the data; empty for those that are made", before=None)
    code: dict[str, Any] | None = key("version and SHA-256 of the file of the user's own code", before=None)  # noqa: RUF009 - a field, as all keys
    world_size: int = key("number of processes", at_least=1, before=1)
    threads: int = key("threads of each process", at_least=1, before=1)
    lanes: int = key("runs in the same program", at_least=1, before=1)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """`timing` of `summary.json`."""

    seconds: float = key("time of training", unit="seconds", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """`summary.json`, as far as anything reads it."""

    format: int = key("version of the file's form", at_least=1, before=1)
    steps: int = key("steps taken", at_least=0)
    metrics: dict[str, float] = key("final metrics that are finite")  # noqa: RUF009 - a field, as all keys
    parameters_sha256: str = key("SHA-256 of the parameters")
    timing: Timing = field()


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """`sweep.json` without its members."""

    format: int = key("version of the file's form", at_least=1, before=1)
    status: Literal["running", "finished", "failed", "interrupted"] = key("how the sweep ended", before="running")
    resumed: int = key("how often it was resumed", at_least=0, before=0)
    started: str | None = key("when it was started, in UTC", before=None)
    name: str = key("name of the experiment")
    command: tuple[str, ...] = key("command as typed", before=[])
    config_dir: str | None = key("the user's folder of groups", before=None)
    task: tuple[str, ...] = key("overrides of all trials, as Hydra's sweeper gets them")
    hydra: tuple[str, ...] = key("settings of launcher and sweeper", before=[])
    fixed: tuple[str, ...] = key("overrides that all trials share", before=[])
    swept: tuple[str, ...] = key("keys that differ between trials", before=[])
    metric: str | tuple[str, ...] | None = key("metric of the search", before=None)
    directions: tuple[str, ...] | None = key("directions of the search", before=None)
    reason: str | None = key("why it did not finish, where its processes could not record that", before=None)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A trial of `sweep.json`, without its values."""

    number: int = key("number", at_least=0, at_most=10**9)
    overrides: tuple[str, ...] = key("its overrides", before=[])
    asked_hash: str | None = key("SHA-256 of the requested configuration", before=None)
    config_hash: str | None = key("SHA-256 of the configuration that ran", before=None)
    state: Literal["waiting", "running", "finished", "failed", "interrupted", "pruned"] = key("how it ended")
    reason: str | None = key("why it did not finish", before=None)


@dataclass(frozen=True, kw_only=True)
class Selected:
    """`selected` of `summary.json`: the state that is reported."""

    step: int = key("its step", at_least=0)
    metrics: dict[str, float] = key("its metrics that are finite")  # noqa: RUF009 - a field, as all keys
    parameters_sha256: str = key("SHA-256 of its parameters")


def read_record(run: Path) -> dict[str, Any]:
    """Return the content of `run.json`. Raises `CheckpointError` with every problem."""
    path = run / RUN
    return checked(RunRecord, read_json(path, "the record of a run"), path)


def read_summary(run: Path) -> dict[str, Any] | None:
    """Return the content of `summary.json`, with metrics as floats; None if there is none.

    Runs older than `selected` have reported their last state. Raises `CheckpointError` with every problem.
    """
    path = run / SUMMARY
    if not os.path.lexists(path):
        return None
    values = read_json(path, "the summary of a run")
    summary, selected = _with_metrics(Summary, values, path), values.get("selected")
    if selected is None:
        last = {"step": summary["steps"]} | {name: summary[name] for name in ("metrics", "parameters_sha256")}
        return {**summary, "selected": last}
    return {**summary, "selected": checked_selected(selected, path)}


def checked_selected(selected: Any, path: Path) -> dict[str, Any]:
    """Return the values of `selected`, with metrics as floats. Raises `CheckpointError` with every problem."""
    if not isinstance(selected, Mapping):
        raise CheckpointError(f"{path}: `selected` must be a group of keys, got {shown(selected)}; restore the file")
    return _with_metrics(Selected, selected, path, "selected")


def _with_metrics(kind: type, values: Mapping[str, Any], path: Path, prefix: str = "") -> dict[str, Any]:
    """Return checked values of a file, with `metrics` as floats."""
    metrics, not_finite = values.get("metrics"), dict[str, float]()
    if isinstance(metrics, dict):
        not_finite = {name: float(value) for name, value in metrics.items() if value in ("nan", "inf", "-inf")}
        metrics = {name: value for name, value in metrics.items() if name not in not_finite}
    found = checked(kind, {**values, "metrics": metrics}, path, prefix)
    finite = {name: float(value) for name, value in found["metrics"].items()}
    return {**found, "metrics": {name: finite.get(name, not_finite.get(name)) for name in values["metrics"]}}


def selected_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of the state that a summary reports; none of a run that has no result."""
    metrics: dict[str, float] = summary.get("selected", summary).get("metrics", {})
    return metrics


def number_names(summary: Mapping[str, Any]) -> list[str]:
    """Return the names of all numbers of `parameters` in order: those of `coefficients`, or "a" and "weight[0]"."""
    if "coefficients" in summary:
        return [*summary["coefficients"]]
    names = []
    for name, value in summary.get("parameters", {}).items():
        count = len(flat(value))
        names += [name] if count == 1 else [f"{name}[{i}]" for i in range(count)]
    return names


def scalar_parameters(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the parameters that are single numbers: those of a formula."""
    parameters = summary.get("parameters")
    found = parameters if isinstance(parameters, dict) else {}
    return {name: value for name, value in found.items() if isinstance(value, float)}


def baselines(summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the finite metrics of the baselines by name."""
    entry = summary.get("baselines")
    found = entry.items() if isinstance(entry, dict) else ()
    return {
        str(name): {metric: value for metric, value in values.items() if isinstance(value, float)}
        for name, values in found
        if isinstance(values, dict)
    }


def flat(value: Any) -> list[float]:
    """Return the numbers of a nested list, or of a single number, in order."""
    return [number for item in value for number in flat(item)] if isinstance(value, list) else [value]


def read_sweep(sweep: Path) -> dict[str, Any]:
    """Return the content of `sweep.json`. Raises `CheckpointError` with every problem."""
    path = sweep / SWEEP
    values = checked(Sweep, read_json(path, "the manifest of a sweep"), path)
    members = values.get("members")
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        raise CheckpointError(f"{path}: `members` must be a list of trials, got {shown(members)}; restore the file")
    problems = [
        f"{path}: {problem}"
        for number, member in enumerate(members)
        for problem in _member_faults(member, f"members.{number}")
    ]
    numbers = [member.get("number") for member in members]
    if not problems and len({*numbers}) < len(numbers):
        problems = [f"{path}: `members` must have different numbers; restore the file"]
    if problems:
        raise CheckpointError(problems[:MAX_PROBLEMS])
    return {**values, "members": [versions.completed(Member, member) for member in members]}


def _member_faults(member: dict[str, Any], place: str) -> list[str]:
    problems = faults(Member, member, place)
    values = member.get("values")
    if not isinstance(values, dict):
        problems.append(f"`{place}.values` must be a group of keys, got {shown(values)}; restore the file")
    return problems
