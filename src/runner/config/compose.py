"""From the words of the command line to a checked `Config`: Hydra composes, the schema judges. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.config import constraints, overrides, validation
from runner.config.hydra_adapter import chosen, options, resolved, set_value, text_of
from runner.config.overrides import Plan
from runner.config.resume import base_values
from runner.config.schema import Config
from runner.errors import ConfigError, InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Composed:
    """A checked configuration, how it was asked for, and what the user should hear about it."""

    config: Config
    overrides: tuple[str, ...]
    notices: tuple[str, ...] = ()
    refers: bool = False
    """Whether a value was written as a reference to another, ${…}, so that it may change with that one."""


def compose(words: Sequence[str], config_dir: str | None = None, base: str | None = None) -> Composed:
    """The checked configuration of the words on the command line; on top of that of the run `base`, or of `resume=DIR`.

    Raises `ConfigError` with every problem there is, and `CheckpointError` where there is no such run.
    """
    plan = overrides.read(words, options(config_dir))
    try:
        config = _config(plan, config_dir, base)
    except InputError as error:
        if not plan.problems:
            raise
        raise ConfigError([*plan.problems, *error.problems]) from None
    if config is None or plan.problems:
        raise ConfigError(plan.problems)
    notices = [*plan.notices, *constraints.notices(config)]
    return Composed(config, tuple(words), tuple(notices), plan.refers)


def check(values: Mapping[str, Any]) -> Config:
    """The typed configuration of plain values; raises `ConfigError` with all that is wrong."""
    config, problems = validation.build(Config, values)
    problems = constraints.problems(config) if config is not None else problems
    if config is None or problems:
        raise ConfigError(problems)
    return config


def _config(plan: Plan, config_dir: str | None, base: str | None) -> Config | None:
    """The configuration, or None where it cannot be told for what is wrong with the plan already."""
    saved = base_values(plan, base)
    if "experiment" in plan.undecided:
        return None
    composed = _composed(plan, config_dir, saved)
    plan.refers = "${" in str(composed)
    values = resolved(composed, plan)
    if saved is None:
        _drop_leftovers(values, plan)
        _tell_kept(values, plan, config_dir)
    if not plan.problems:
        return check(values)
    plan.problems += _problems_besides(values, plan)
    return None


def _problems_besides(values: dict[str, Any], plan: Plan) -> list[str]:
    """What else is wrong: nothing about groups whose option is not known, nor again about a key that was named."""
    named = {problem.split("`")[1] for problem in plan.problems if "`" in problem}
    _, problems = validation.build(Config, values)
    return [
        problem
        for problem in problems
        if (key := problem.split("`")[1]) not in named and key.partition(".")[0] not in plan.undecided
    ]


def _composed(plan: Plan, config_dir: str | None, saved: Mapping[str, Any] | None) -> DictConfig:
    """The options that were chosen, or a run's own values; on top of them the values that were given."""
    from omegaconf import OmegaConf

    if saved is None:
        config = chosen(plan, config_dir)
    else:
        config = OmegaConf.create(dict(saved))
        groups = plan.groups.keys() & validation.hints(Config).keys()
        fresh = chosen(plan, config_dir) if groups else {}
        for group in groups:
            OmegaConf.update(config, group, fresh[group], merge=False)
    for name, value in plan.values.items():
        reason = set_value(config, name, value)
        if reason is not None:
            plan.problems.append(f"`{name}` cannot be set to {validation.shown(value)}: {reason}; mend the value")
    return config


def _tell_kept(values: Mapping[str, Any], plan: Plan, config_dir: str | None) -> None:
    """Name what an experiment sets over the option that is typed beside it: `optimizer=adam` with the lr of another."""
    from omegaconf import OmegaConf

    texts = [
        text_of(group, choice, config_dir)
        for group, choice in plan.groups.items()
        if group not in validation.hints(Config)
    ]
    # Only what such a file names can have been set by it; composing once more takes a tenth of a second.
    typed = {
        group
        for group in plan.groups.keys() & validation.hints(Config).keys()
        if any(f"\n{group}:" in t for t in texts)
    }
    if not typed:
        return
    alone = OmegaConf.to_container(chosen(Plan({group: plan.groups[group] for group in typed}), config_dir))
    assert isinstance(alone, dict)
    kept = [
        f"`{group}.{name}`={values[group][name]} ({plan.groups[group]}: {own})"
        for group in sorted(typed)
        for name, own in alone[group].items()
        if values[group].get(name, own) != own and not any(n.startswith(f"{group}.{name}") for n in plan.values)
    ]
    if kept:
        plan.notices.append(f"kept from the experiment: {', '.join(kept)}")


def _drop_leftovers(values: dict[str, Any], plan: Plan) -> None:
    """Take away what an experiment sets for another option of a group than the one on the command line.

    `+experiment=linreg model=mlp` must run, though `model.init` there is for a linear model only.
    """
    known = set(validation.paths(Config))
    for group in plan.groups.keys() & validation.hints(Config).keys():
        given = values[group]
        if not isinstance(given, dict):
            continue
        chosen = validation.variants(validation.hints(Config)[group]).get(str(given.get("name")))
        own = validation.hints(chosen) if chosen is not None else given
        left = [n for n in given if n not in own and f"{group}.{n}" in known and f"{group}.{n}" not in plan.values]
        for name in left:
            del given[name]
        if left:
            names = ", ".join(f"`{group}.{name}`" for name in left)
            plan.notices.append(f"{names} of the experiment left out: {given['name']} has no such key")
