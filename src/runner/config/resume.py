"""Runs that are continued or repeated: the configuration that they saved, and what may differ from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.config import validation
from runner.config.overrides import Plan
from runner.config.schema import Config, free_keys, plain, resumable_keys
from runner.config.validation import is_within
from runner.errors import CheckpointError


def base_values(plan: Plan, base: str | None) -> dict[str, Any] | None:
    """The values of the run that is gone on from or done again, or None for a new one."""
    resumed = plan.values.get("resume")
    if base is not None:
        plan.problems += [
            f"`{group}` cannot be given with rerun, which starts from the run's own configuration; leave it out"
            for group in plan.groups
            if group not in validation.hints(Config)
        ]
        if resumed is not None:
            plan.problems.append("`resume` cannot be given with rerun, which makes a new run; leave one of them out")
        return _replaceable(saved_values(base, "rerun")) | {"run_dir": None, "resume": None}
    if resumed is None:
        return None
    plan.problems += _other_answer(plan)
    saved = _replaceable(saved_values(str(resumed), "resume"))
    plan.notices += _broken_promises(saved, plan)
    return saved


def _replaceable(saved: dict[str, Any]) -> dict[str, Any]:
    """A run's values for any number of processes: single and ddp differ in that alone, and `auto` decides anew."""
    if saved["strategy"]["name"] in ("single", "ddp"):
        saved["strategy"]["name"] = "auto"
    return saved


def _other_answer(plan: Plan) -> list[str]:
    allowed = ", ".join(name for name in resumable_keys() if name != "resume")
    return [
        f"`{name}` cannot be changed when a run is resumed, since the answer would be that of another experiment; "
        f"only {allowed} can: leave it out, or start a new run"
        for name in plan.names
        if not is_within(name, resumable_keys())
    ]


def _broken_promises(saved: Mapping[str, Any], plan: Plan) -> list[str]:
    notices = []
    schedule = saved.get("schedule")
    if "train.steps" in plan.values and isinstance(schedule, dict) and "cosine" in str(schedule.get("name")):
        notices.append(
            "a new number of steps changes the cosine schedule, so the steps before were taken with other learning rates"
        )
    if any(name in ("strategy.reduction", "strategy.chunks") for name in plan.names):
        notices.append(
            "another reduction or number of chunks adds in another order: the bits will differ from those of a run never stopped"
        )
    if any(name == "device" or name.startswith("device.") for name in plan.names):
        notices.append(
            "another device or thread count may round differently: the bits may differ from those of a run never stopped"
        )
    return notices


def saved_values(run: str, word: str) -> dict[str, Any]:
    """The values in a run's `config.yaml`, those of newer keys as they were before these existed.

    Raises `CheckpointError`, naming `word`, where there is none to read.
    """
    from omegaconf import OmegaConf

    path = Path(run)
    if not run or not path.is_dir():
        raise CheckpointError(f"`{word}` must be a run directory, but {run!r} is not a directory; mend the path")
    if word == "resume" and (path / "sweep.json").is_file():
        raise CheckpointError(
            f"`resume` must be a run directory, but {run!r} is that of a sweep; add -m to go on with it"
        )
    if not (path / "config.yaml").is_file():
        raise CheckpointError(
            f"`{word}` must be a run directory, but {run!r} has no config.yaml; give the folder of one run"
        )
    try:
        values = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"), resolve=True)
    except Exception as error:
        raise CheckpointError(f"{path / 'config.yaml'} cannot be read: {' '.join(str(error).split())}") from None
    config, problems = validation.build(Config, validation.completed(Config, values))
    if config is None:
        raise CheckpointError(f"{path / 'config.yaml'} is not as a run wrote it: {problem}" for problem in problems)
    return plain(config)


def refuse_other(state: Mapping[str, Any], config: Config, data_sha256: str, path: Path) -> None:
    """A checkpoint of another experiment must not be continued. Raises `CheckpointError` with every key that differs."""
    saved, present = _leaves(validation.completed(type(config), state["config"]), ""), _leaves(plain(config), "")
    problems = []
    for key in sorted(saved.keys() | present.keys()):
        name = key.removeprefix(".")
        if saved.get(key) != present.get(key) and not is_within(name, free_keys()):
            problems.append(
                f"`{name}` must be {saved.get(key)} as in {path.name}, but is {present.get(key)} in config.yaml; restore config.yaml"
            )
    if state["data_sha256"] != data_sha256:
        problems.append(
            f"`data.path` must be the file that {path.name} was trained on, but its content has changed; restore it, or start a new run"
        )
    if problems:
        raise CheckpointError(problems)


def _leaves(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}.{name}")
        elif isinstance(value, (bool, int, float, str)):
            found[f"{prefix}.{name}"] = value
        elif value is not None:
            found[f"{prefix}.{name}"] = str(value)
    return found
