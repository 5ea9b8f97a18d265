"""Explanation of a configuration: each value with its assignments, and the meaning that the schema gives it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.commands.explain.own_model import remarks
from runner.commands.explain.sources import GROUPS, Assignment, assignments, choices, history, merge_files
from runner.config import introspection, overrides, validation
from runner.config.compose import Composed, compose
from runner.config.hydra_adapter import options
from runner.config.parts import Key
from runner.config.schema import Config
from runner.errors import ConfigError, InputError


@dataclass(frozen=True)
class Value:
    """A key of the configuration with its value, its assignments and its meaning. The last assignment is in effect."""

    key: str
    value: Any
    assignments: tuple[Assignment, ...]
    meaning: str
    unit: str
    at_start: str | None
    """Value that the start of the run still chooses, or None."""

    @property
    def reference(self) -> str | None:
        """Text with ${…} that the value was resolved from, or None."""
        written = as_yaml(self.assignments[-1].value)
        return written if "${" in written else None


@dataclass(frozen=True)
class Explanation:
    """Values in the order of the schema, and for each group the assignments of its option, the last one in effect."""

    values: tuple[Value, ...]
    choices: dict[str, tuple[Assignment, ...]]
    notices: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    """Sentences on what a model of the user's own does."""


@dataclass(frozen=True)
class StartRule:
    """Sentence on a key whose value is chosen only when the run starts, and when it applies."""

    key: str
    applies: Callable[[Config], bool]
    sentence: str


def _is_one_process(config: Config) -> bool:
    return config.launch.processes == config.launch.nodes == 1


START_RULES = (
    StartRule(
        "device.name",
        lambda config: config.device.name == "auto",
        "an accelerator if torch finds one, else cpu; `python -m runner doctor` shows which",
    ),
    StartRule(
        "device.threads",
        lambda config: config.device.threads is None and config.strategy.reduction == "exact",
        "1, so that the bits do not depend on the number of cores",
    ),
    StartRule(
        "strategy.name",
        lambda config: config.strategy.name == "auto",
        "single on one process, ddp on more",
    ),
    StartRule(
        "strategy.name",
        lambda config: config.strategy.name == "ddp" and _is_one_process(config),
        "single, unless torchrun starts more processes",
    ),
    StartRule(
        "strategy.name",
        lambda config: config.strategy.name == "dp",
        "single if fewer than two GPUs are visible",
    ),
    StartRule(
        "run_dir",
        lambda config: config.run_dir is None and config.resume is None,
        "a new directory runs/<name>/<stamp>",
    ),
)


def explain(
    arguments: Sequence[str], config_dir: str | None = None, base: str | None = None, only: Sequence[str] = ()
) -> Explanation:
    """Explain the configuration that the overrides `arguments` compose.

    `base` is the directory of a run to repeat. `only` names the keys and groups to keep; empty keeps all.
    Raises what `compose` raises, and `ConfigError` for a name in `only` that the configuration does not have.
    """
    problems = _unknown_names(only, config_dir)
    try:
        composed = compose(arguments, config_dir, base)
    except InputError as error:
        if not problems:
            raise
        raise ConfigError([*problems, *error.problems]) from None
    run = composed.config.resume if base is None else base
    plan = overrides.read(arguments, options(config_dir))
    merged = merge_files(plan, config_dir)
    values = list(_values(composed, assignments(composed, plan, merged, run), base))
    problems = problems or [
        _not_in_config(name, composed.config) for name in only if not any(_is_within(v.key, name) for v in values)
    ]
    if problems:
        raise ConfigError(problems)
    kept = [v for v in values if not only or any(_is_within(v.key, name) for name in only)]
    kept_groups = {v.key.partition(".")[0] for v in kept}
    kept_choices = {
        group: of_group
        for group, of_group in choices(composed, plan, merged, run).items()
        if group in kept_groups or not (only or group in GROUPS)
    }
    about_model = remarks(composed.config) if "model" in kept_groups else ()
    return Explanation(tuple(kept), kept_choices, composed.notices, tuple(about_model))


def _is_within(key: str, name: str) -> bool:
    return f"{key}.".startswith(f"{name}.")


def _unknown_names(only: Sequence[str], config_dir: str | None) -> list[str]:
    """Return one sentence for each name that no configuration has."""
    keys, groups = list(introspection.paths(Config)), options(config_dir)
    return [
        f"`{name}` is not a key; did you mean +experiment={name}?"
        if name in groups.get("experiment", {})
        else validation.unknown(name, keys)
        for name in only
        if name not in keys and not introspection.is_mapping(Config, name.rpartition(".")[0])
    ]


def _not_in_config(name: str, config: Config) -> str:
    group = name.partition(".")[0]
    option = getattr(config, group).name
    return f"`{name}` has no value, because `{group}` is {option}; use `explain {group}` to see the keys of {option}"


def _values(composed: Composed, assigned: Sequence[Assignment], base: str | None) -> Iterator[Value]:
    """Yield every key with its history."""
    config = composed.config
    source = f"rerun {base}" if base is not None else f"resume={config.resume}" if config.resume is not None else None
    for key, value, meaning in _leaves(config):
        of_key = list(history(key, value, assigned))
        if source is not None and of_key[-1].value != value and "${" not in as_yaml(of_key[-1].value):
            # Some values of the saved run are replaced, such as a strategy for another number of processes.
            of_key.append(Assignment(key, value, source))
        at_start = next((rule.sentence for rule in START_RULES if rule.key == key and rule.applies(config)), None)
        yield Value(key, value, tuple(of_key), meaning.meaning, meaning.unit, at_start)


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Key]]:
    """Yield dotted key, plain value and meaning of each value; each entry of a mapping is yielded separately."""
    for name, meaning in _fields(config).items():
        value = getattr(config, name)
        if meaning is None:
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, dict) and value:
            yield from ((f"{prefix}{name}.{entry}", number, meaning) for entry, number in value.items())
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value, meaning


def _fields(config: Any) -> dict[str, Key | None]:
    """Return field -> meaning in the order of the schema; None stands for a group."""
    meanings = introspection.keys(type(config))
    return {field.name: meanings.get(field.name) for field in dataclasses.fields(config)}


def as_yaml(value: Any) -> str:
    """Return a value as it is written in YAML or on the command line."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {as_yaml(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    return str(value) or "''"
