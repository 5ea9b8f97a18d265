"""Compose a checked `Config` from the arguments of the command line: Hydra merges the files, the schema checks the values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.config import constraints, introspection, overrides, validation, versions
from runner.config.hydra_adapter import composed_groups, option_text, options, resolved_values, set_key
from runner.config.overrides import Plan
from runner.config.resume import base_values
from runner.config.schema import Config
from runner.errors import ConfigError, InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

_ENVIRONMENT = re.compile(r"\$\{oc\.env:[^{}]*\}")
"""Reference to an environment variable."""


@dataclass(frozen=True)
class Composed:
    """A checked configuration, the arguments that it was composed from, and notices for the user."""

    config: Config
    overrides: tuple[str, ...]
    notices: tuple[str, ...] = ()
    repeats: str | None = None
    """Directory of the run that this one repeats, with the same data; None for other data."""
    has_references: bool = False
    """Whether a value is a reference to another one, ${…}, and so may change with it."""


def compose(arguments: Sequence[str], config_dir: str | None = None, base: str | None = None) -> Composed:
    """Return the checked configuration of command-line arguments.

    With `base`, a run directory, or with the argument `resume=DIR`, they override the configuration of that run. Raises
    `ConfigError` with all problems, and `CheckpointError` if there is no such run.
    """
    plan = overrides.read(arguments, options(config_dir))
    try:
        config = _config(plan, config_dir, base)
    except InputError as error:
        if not plan.problems:
            raise
        raise ConfigError([*plan.problems, *error.problems]) from None
    if config is None or plan.problems:
        raise ConfigError(plan.problems)
    notices = [*plan.notices, *constraints.notices(config)]
    repeats = base if plan.saved is not None and _asks_for_data_of(plan.saved, config) else None
    return Composed(config, tuple(arguments), tuple(notices), repeats, plan.has_references)


def check(values: Mapping[str, Any]) -> Config:
    """Return the configuration of plain values. Raises `ConfigError` with all problems."""
    config, problems = validation.build(Config, values)
    problems = constraints.problems(config) if config is not None else problems
    if config is None or problems:
        raise ConfigError(problems)
    return config


def _config(plan: Plan, config_dir: str | None, base: str | None) -> Config | None:
    """Return the checked configuration, or None if the plan has problems. Further problems are added to the plan."""
    saved = plan.saved = base_values(plan, base)
    if "experiment" in plan.unresolved:
        return None
    composed = _composed(plan, config_dir, saved)
    plan.has_references = "${" in str(composed)
    written = composed.copy() if plan.has_references else composed  # references are replaced by their values below
    values = resolved_values(composed, plan)
    if saved is None:
        values = versions.completed(Config, values)  # a user's own option may be older than a key
        _drop_foreign_keys(values, plan)
        _notice_kept_values(values, plan, config_dir)
    try:
        if not plan.problems and not plan.dependent:
            return check(values)
    except ConfigError as error:
        raise error.changed(lambda problem: _advised(problem, written)) from None
    plan.problems += [_advised(problem, written) for problem in _further_problems(values, plan)]
    return None


def _asks_for_data_of(saved: Mapping[str, Any], config: Config) -> bool:
    """Return whether the data are those of a saved configuration, though perhaps in other places."""
    data, paths = saved["data"], config.data.paths
    files = {f"data.{name}" for name in ("path", "valid_path", "test_path") if data.get(name) is not None}
    return bool(data["name"] == config.data.name) and files == paths.keys()


def _advised(problem: str, composed: DictConfig) -> str:
    """Return a problem with a value, and how to write a reference to an environment variable where that solves it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key = problem.split("`")[1] if "`" in problem else ""
    text: Any = OmegaConf.to_container(composed, resolve=False)
    for name in key.split("."):
        text = text.get(name) if isinstance(text, dict) else None
    decoded = _ENVIRONMENT.sub(r"${oc.decode:\g<0>}", text) if isinstance(text, str) else text
    if decoded == text:
        return problem
    trial = composed.copy()
    try:
        OmegaConf.update(trial, key, decoded, merge=False)
        _, problems = validation.build(Config, OmegaConf.to_container(trial, resolve=True))
    except OmegaConfBaseException:
        return problem
    if any(other.startswith(f"`{key}`") for other in problems):
        return problem
    return f"{problem}; an environment variable is a string until it is decoded: write {key}='{decoded}'"


def _further_problems(values: dict[str, Any], plan: Plan) -> list[str]:
    """Return the problems of values whose key is in no problem yet and whose group's option is known."""
    named = plan.dependent | {problem.split("`")[1] for problem in plan.problems if "`" in problem}
    _, problems = validation.build(Config, values)
    return [
        problem
        for problem in problems
        if (key := problem.split("`")[1]) not in named and key.partition(".")[0] not in plan.unresolved
    ]


def _composed(plan: Plan, config_dir: str | None, saved: Mapping[str, Any] | None) -> DictConfig:
    """Return the chosen options, or the saved values of a run, with the values of the plan applied."""
    from omegaconf import OmegaConf

    if saved is None:
        config = composed_groups(plan, config_dir)
    else:
        config = OmegaConf.create(dict(saved))
        groups = plan.groups.keys() & introspection.hints(Config).keys()
        fresh = composed_groups(plan, config_dir) if groups else {}
        for group in groups:
            OmegaConf.update(config, group, fresh[group], merge=False)
    for name, value in plan.values.items():
        reason = set_key(config, name, value)
        if reason is not None:
            plan.problems.append(f"`{name}` cannot be set to {validation.shown(value)}: {reason}; correct the value")
    return config


def _notice_kept_values(values: Mapping[str, Any], plan: Plan, config_dir: str | None) -> None:
    """Add a notice of the values that an experiment sets in a group whose option is on the command line.

    An example is the experiment's learning rate after `optimizer=adam`.
    """
    from omegaconf import OmegaConf

    texts = [
        option_text(group, choice, config_dir)
        for group, choice in plan.groups.items()
        if group not in introspection.hints(Config)
    ]
    # Only groups named in such a file can have been set by it. Skipping the others saves a second composition (0.1 s).
    named = {
        group
        for group in plan.groups.keys() & introspection.hints(Config).keys()
        if any(f"\n{group}:" in text for text in texts)
    }
    if not named:
        return
    defaults = OmegaConf.to_container(composed_groups(Plan({group: plan.groups[group] for group in named}), config_dir))
    assert isinstance(defaults, dict)
    kept = [
        f"`{name}`={value} ({plan.groups[group]}: {default})"
        for group in sorted(named)
        for name, value, default in _differing(values[group], defaults[group], group)
        if not any(key.startswith(name) for key in plan.values)
    ]
    if kept:
        plan.notices.append(f"kept from the experiment: {', '.join(kept)}")


def _differing(values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted key, value and default where they differ."""
    for name, default in defaults.items():
        value, path = values.get(name, default), f"{prefix}.{name}"
        if isinstance(default, dict) and default and isinstance(value, dict):
            yield from _differing(value, default, path)
        elif value != default:
            yield path, value, default


def _drop_foreign_keys(values: dict[str, Any], plan: Plan) -> None:
    """Drop the keys that an experiment sets for another option of a group than the one on the command line.

    For example, `+experiment=linreg model=mlp` must run although the experiment sets `model.init`, which mlp does not have.
    """
    known = set(introspection.paths(Config))
    for group in plan.groups.keys() & introspection.hints(Config).keys():
        present = values[group]
        if not isinstance(present, dict):
            continue
        variant = introspection.variants(introspection.hints(Config)[group]).get(str(present.get("name")))
        fields = introspection.hints(variant) if variant is not None else present
        dropped = [
            name
            for name in present
            if name not in fields
            and f"{group}.{name}" in known
            and not any(introspection.is_within(typed, [f"{group}.{name}"]) for typed in plan.values)
        ]
        for name in dropped:
            del present[name]
        if dropped:
            names = ", ".join(f"`{group}.{name}`" for name in dropped)
            plan.notices.append(f"{names} of the experiment left out: {present['name']} has no such key")
