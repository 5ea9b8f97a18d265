"""Configuration of a resumed or repeated run: read the saved values, and check what may differ from them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.config import introspection, validation, versions
from runner.config.documents import read_yaml
from runner.config.hydra_adapter import yaml_values
from runner.config.overrides import Plan
from runner.config.schema import Config, DataConfig, Memory, ScheduleConfig, free_keys, plain, resumable_keys
from runner.errors import CheckpointError


def base_values(plan: Plan, base: str | None) -> dict[str, Any] | None:
    """Return the saved values of the run to repeat (`base`) or to resume (`resume` in the plan); None for a new run.

    Problems and notices are added to the plan. Raises `CheckpointError` if there is no such run.
    """
    resumed = plan.values.get("resume")
    if base is not None:
        plan.problems += [
            f"`{group}` must not be given with rerun, which uses the configuration of the run; remove it"
            for group in plan.groups
            if group not in introspection.hints(Config)
        ]
        if resumed is not None:
            plan.problems.append("`resume` must not be given with rerun, which creates a new run; remove one of them")
        return _any_world_size(saved_values(base, "rerun")) | {"run_dir": None, "resume": None}
    if resumed is None:
        return None
    plan.problems += _fixed_key_problems(plan)
    saved = _any_world_size(saved_values(str(resumed), "resume"))
    plan.notices += _changed_bits_notices(saved, plan)
    return saved


def _any_world_size(saved: dict[str, Any]) -> dict[str, Any]:
    """Return a run's values for any number of processes: single and ddp become auto."""
    if saved["strategy"]["name"] in ("single", "ddp"):
        saved["strategy"]["name"] = "auto"
    return saved


def _fixed_key_problems(plan: Plan) -> list[str]:
    """Return a problem for each key that must not change when a run is resumed."""
    allowed = ", ".join(name for name in resumable_keys() if name != "resume")
    return [
        f"`{name}` must not change when a run is resumed, because it would change the experiment (only {allowed} may); "
        "remove it, or start a new run"
        for name in plan.names
        if not introspection.is_within(name, resumable_keys())
    ]


def _changed_bits_notices(saved: Mapping[str, Any], plan: Plan) -> list[str]:
    """Return notices about overrides after which the result differs from that of an uninterrupted run."""
    notices = []
    schedule = str(saved["schedule"]["name"])
    if ScheduleConfig.choices[schedule].spans_run and (
        plan.values.get("train.steps") or plan.values.get("train.epochs")
    ):
        notices.append(
            f"a new number of steps changes the {schedule} schedule: previous steps used different learning rates"
        )
    if any(name in ("strategy.reduction", "strategy.chunks") for name in plan.names):
        notices.append(
            "another reduction or number of chunks adds in another order: the bits will differ from an uninterrupted run"
        )
    if any(name == "device" or name.startswith("device.") for name in plan.names):
        notices.append(
            "another device or thread count may round differently: the bits may differ from an uninterrupted run"
        )
    return notices


def saved_values(run: str, source: str) -> dict[str, Any]:
    """Return the values in a run's `config.yaml`, completed with the keys that are newer than the run.

    `source` is the argument that named the run, such as `resume`. Raises `CheckpointError`, with `source` in the message,
    if there is no configuration or it cannot be used.
    """
    path = Path(run)
    if not os.path.isdir(run):  # Path.is_dir raises an error for a name that is too long
        raise CheckpointError(
            f"`{source}` must be a run directory, got {run!r}, which is not a directory; correct the path"
        )
    if source == "resume" and os.path.isfile(path / "sweep.json"):
        raise CheckpointError(
            f"`resume` must be a run directory, got {run!r}, which is a sweep directory; add -m to resume the sweep"
        )
    file = path / "config.yaml"
    try:
        values = yaml_values(read_yaml(file), file)
    except FileNotFoundError:
        raise CheckpointError(
            f"`{source}` must be a run directory, got {run!r}, which has no config.yaml; give the directory of one run"
        ) from None
    except Exception as error:  # of a dozen types
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise CheckpointError(f"{file} cannot be read: {reason}{'' if ';' in reason else '; restore it'}") from None
    return checked_values(values, file)


def checked_values(values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the configuration that a file has, completed. Raises `CheckpointError` with every problem."""
    references = [
        f"{file}: `{name}` must be a value, got a reference {validation.shown(value)}; write the value"
        for name, value in _references(values)
    ]
    if references:
        raise CheckpointError(references)
    config, problems = validation.build(Config, versions.completed(Config, values))
    if config is None:
        raise CheckpointError(f"{file} is not a valid configuration: {problem}" for problem in problems)
    return plain(config)


def _references(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys with references: a run has written none, and one may copy a secret of this user into a record."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _references(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _references(item, name)
    elif isinstance(value, str) and "${" in value:
        yield name, value


def refuse_other(state: Mapping[str, Any], config: Config, data_sha256: str, path: Path) -> None:
    """Check that a checkpoint belongs to this configuration and data. Raises `CheckpointError` with every difference."""
    saved, present = _leaves(versions.completed(type(config), state["config"]), ""), _leaves(plain(config), "")
    problems = []
    for key in sorted(saved.keys() | present.keys()):
        name = key.removeprefix(".")
        if saved.get(key) != present.get(key) and not introspection.is_within(name, free_keys()):
            problems.append(
                f"`{name}` must be {saved.get(key)} as in {path.name}, got {present.get(key)} in config.yaml; restore config.yaml"
            )
    if state["data_sha256"] != data_sha256:
        problems.append(other_data(config.data, state["data_sha256"], data_sha256, path))
    if problems:
        raise CheckpointError(problems)


def other_data(data: DataConfig, known: str, found: str, trained: Path) -> str:
    """Return the problem with data of another SHA-256 than the `known` one, which a run or checkpoint was `trained` on."""
    keys = [f"`{key}`" for key in data.paths] or [f"`data`={data.name}"]
    files = "file" if len(keys) == 1 else "files"
    given = files if data.paths else "rows" if isinstance(data, Memory) else None
    remedy = "start a new run" if given is None else f"give the {given} with that content, or start a new run"
    return (
        f"{' and '.join(keys)} must have the content that {trained.name} was trained on, SHA-256 {known[:8]}…, "
        f"got {found[:8]}…; {remedy}"
    )


def same_data(paths: Mapping[str, str], sha256: str, trained: Path) -> str:
    """Return the note that files in other places, by key, have the content that a run was `trained` on."""
    shown = " and ".join(f"`{key}`={path}" for key, path in paths.items())
    return f"{shown} {'has' if len(paths) == 1 else 'have'} the content that {trained} was trained on, SHA-256 {sha256[:8]}…"


def _leaves(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the values other than None by dotted key, each of which begins with a dot."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= _leaves(value, f"{prefix}.{name}")
        elif isinstance(value, (bool, int, float, str)):
            result[f"{prefix}.{name}"] = value
        elif value is not None:
            result[f"{prefix}.{name}"] = str(value)
    return result
