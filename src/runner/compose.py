"""From the command line's words to a checked `Config`: Hydra composes, the schema judges. Nothing here imports torch.

Hydra stops at the first key that it does not know and advises to add it with `+`. So every override's key is held
against the schema first, and handed to Hydra as `++key=value`: what is wrong is then found here, all of it at once.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import combinations, schema
from runner.config import Config
from runner.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

HERE = Path(__file__).parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parents[1] / "conf"
"""In a wheel the values lie in the package, in a checkout at its top."""

RESUMABLE = ("train.steps", "train.epochs", "device", "strategy", "launch", "record", "checkpoint", "resume")
"""What may be overridden when a run goes on; everything else would make it another experiment."""


@dataclass(frozen=True)
class Composed:
    """A checked configuration, how it was asked for, and what the user should hear about it."""

    config: Config
    overrides: tuple[str, ...]
    notices: tuple[str, ...] = ()


@dataclass
class _Plan:
    """Overrides sorted by how they reach the configuration."""

    groups: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    mappings: dict[str, dict[str, Any]] = field(default_factory=dict)
    hydra: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    undecided: bool = False
    notices: list[str] = field(default_factory=list)


def options(config_dir: str | None = None) -> dict[str, dict[str, str]]:
    """Group → option → its sentence (the first comment of its file), ours and the user's."""
    found: dict[str, dict[str, str]] = {}
    for root in [CONF] + ([Path(config_dir)] if config_dir else []):
        for file in sorted(root.glob("*/*.yaml")):
            if not file.stem.startswith("_"):
                found.setdefault(file.parent.name, {})[file.stem] = _sentence(file)
    return found


def _sentence(file: Path) -> str:
    with file.open(encoding="utf-8") as lines:
        comments = (line[1:].strip() for line in lines if line.startswith("#"))
        return next((text for text in comments if not text.startswith("@package")), "")


def compose(overrides: Sequence[str], config_dir: str | None = None, base: str | None = None) -> Composed:
    """The checked configuration of the words on the command line; on top of that of the run `base`, or of `resume=DIR`.

    Raises `ConfigError` with every problem there is, and `CheckpointError` where there is no such run.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(
            f"`--config-dir` must be a folder of configuration groups, but {config_dir!r} is none; mend the path"
        )
    plan = _plan(overrides, options(config_dir))
    if plan.problems:
        raise ConfigError([*plan.problems, *_problems_besides(plan, config_dir)])
    resumed = _string(plan.values.get("resume"))
    if resumed is not None:
        _refuse_other_answer(plan)
        values = _on_top_of(resumed, plan, config_dir) | {"resume": resumed}
        plan.notices += _broken_promises(values, plan)
    elif base is not None:
        if "experiment" in plan.groups:
            raise ConfigError("`experiment` cannot be given with rerun, which takes the run's own; leave it out")
        values = {**_on_top_of(base, plan, config_dir), "run_dir": _string(plan.values.get("run_dir"))}
    else:
        values = _compose(plan, config_dir)
    return Composed(check(values), tuple(overrides), tuple(plan.notices))


def _problems_besides(plan: _Plan, config_dir: str | None) -> tuple[str, ...]:
    """What is wrong with the values, when some keys are wrong too; nothing where a wrong choice hides it."""
    if plan.undecided or "resume" in plan.values:
        return ()
    try:
        check(_compose(plan, config_dir))
    except ConfigError as error:
        return error.problems
    return ()


def check(values: Mapping[str, Any]) -> Config:
    """The typed configuration of plain values; raises `ConfigError` with all that is wrong."""
    config, problems = schema.build(Config, values)
    if config is None:
        raise ConfigError(problems)
    problems = combinations.problems(config)
    if problems:
        raise ConfigError(problems)
    return config


def _plan(overrides: Sequence[str], groups: Mapping[str, Mapping[str, str]]) -> _Plan:
    plan = _Plan()
    known = list(schema.paths(Config))
    for override in _parse(overrides, plan):
        _sort(override, groups, known, plan)
    both = {"train.steps", "train.epochs"} & plan.values.keys()
    if len(both) == 2 and "null" not in (plan.values["train.steps"], plan.values["train.epochs"]):
        plan.problems.append("`train.steps` and `train.epochs` are both given; one replaces the other: leave one out")
    elif len(both) == 1 and plan.values[next(iter(both))] != "null":
        plan.values[({"train.steps", "train.epochs"} - both).pop()] = "null"
    return plan


def _parse(overrides: Iterable[str], plan: _Plan) -> list[Override]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    parser, parsed = OverridesParser.create(), []
    for text in overrides:
        if text.startswith("-"):
            plan.problems.append(
                f"`{text}` is not an option; values are given as key=value, such as {text.lstrip('-')}"
            )
            continue
        try:
            parsed += parser.parse_overrides([text])
        except OverrideParseException as error:
            reason = str(error).splitlines()[0]
            plan.problems.append(
                f"`{text}` must have the form key=value, with quotes around special characters ({reason})"
            )
    return parsed


def _sort(override: Override, groups: Mapping[str, Mapping[str, str]], known: list[str], plan: _Plan) -> None:
    name, text = override.key_or_group, (override.input_line or "").partition("=")[2]
    if name.startswith("hydra.") or name.startswith("hydra/"):
        plan.hydra.append(override.input_line or "")
    elif override.is_delete():
        plan.problems.append(f"`~{name}` deletes a key, but every key must have a value; give it one")
    elif override.is_sweep_override():
        plan.problems.append(
            f"`{name}` must be one value, but is {text}; a text with commas wants quotes: {name}=\"'{text}'\""
        )
    elif name in groups or override.package is not None:
        _choose(name, override.value(), groups, plan)
    elif name in known and not schema.is_group(Config, name):
        if name in plan.values or name in plan.mappings:
            plan.notices.append(f"`{name}` is given twice; the last one counts: {text}")
        if isinstance(override.value(), dict):
            plan.mappings[name] = _unquoted(override.value())
        else:
            plan.values[name] = text
    elif name.rpartition(".")[0] in known and schema.is_mapping(Config, name.rpartition(".")[0]):
        plan.values[name] = text
    else:
        plan.problems.append(schema.unknown(name, [*known, *groups]))


def _choose(name: str, choice: Any, groups: Mapping[str, Mapping[str, str]], plan: _Plan) -> None:
    if choice in groups.get(name, {}):
        if name in plan.groups:
            plan.notices.append(f"`{name}` is given twice; the last one counts: {choice}")
        plan.groups[name] = str(choice)
        return
    plan.undecided = True
    near = difflib.get_close_matches(str(choice), list(groups.get(name, {})), n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    plan.problems.append(f"`{name}` must be one of {', '.join(groups.get(name, {}))}, but is {choice}{hint}")


def _unquoted(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(_unquoted(k)): _unquoted(v) for k, v in value.items()}
    return getattr(value, "text", value)


def _compose(plan: _Plan, config_dir: str | None) -> dict[str, Any]:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    base = {"version_base": "1.3"} if "execution_whitelist" not in inspect.signature(hydra.main).parameters else {}
    outer, singleton = GlobalHydra.instance().hydra, GlobalHydra.instance()
    singleton.clear()
    try:
        with hydra.initialize_config_dir(str(CONF), job_name="runner", **base):
            composed = hydra.compose("config", hydra_words(plan, config_dir))
        for name, mapping in plan.mappings.items():
            OmegaConf.update(composed, name, mapping, merge=False, force_add=True)
        values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(_sentences(error)) from None
    finally:
        singleton.clear()
        if outer is not None:
            singleton.initialize(outer)
    assert isinstance(values, dict)
    named = {str(k): v for k, v in values.items()}
    _drop_leftovers(named, plan)
    return named


def _drop_leftovers(values: dict[str, Any], plan: _Plan) -> None:
    """Take away what an experiment sets for another choice of a group than the one on the command line.

    `+experiment=linreg model=mlp` must run, though `model.init` there is for a linear model only.
    """
    known = set(schema.paths(Config))
    for group in plan.groups.keys() & values.keys():
        chosen = schema.variants(schema.hints(Config).get(group)).get(str(values[group].get("name")))
        own = schema.hints(chosen) if chosen is not None else values[group]
        for name in [name for name in values[group] if name not in own and f"{group}.{name}" in known]:
            if f"{group}.{name}" not in plan.values.keys() | plan.mappings.keys():
                del values[group][name]
                plan.notices.append(
                    f"`{group}.{name}` of the experiment is left out: {values[group]['name']} has no such key"
                )


def hydra_words(plan: _Plan, config_dir: str | None) -> list[str]:
    """The command line as Hydra takes it: groups as they are, `+experiment`, and every value by force."""
    words = [f"{'+' if group == 'experiment' else ''}{group}={choice}" for group, choice in plan.groups.items()]
    words += [f"++{name}={text}" for name, text in plan.values.items()] + plan.hydra
    if config_dir is not None:
        words.append(f"hydra.searchpath=['file://{Path(config_dir).resolve()}']")
    return words


def _sentences(error: Exception) -> str:
    """Hydra's and YAML's many lines as one."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    full_key = getattr(error, "full_key", None)
    return f"`{full_key}` cannot be resolved: {text}" if full_key else f"the configuration cannot be read: {text}"


def _string(text: str | None) -> str | None:
    if text is None or text == "null":
        return None
    return text[1:-1] if text[:1] in "'\"" and text[-1:] == text[:1] else text


def saved_values(run: str) -> dict[str, Any]:
    """The values in a run's `config.yaml`. Raises `CheckpointError` where there is none to read."""
    from omegaconf import OmegaConf

    path = Path(run)
    if not path.is_dir():
        raise CheckpointError(f"`resume` must be a run directory, but {run!r} is not a directory; mend the path")
    if not (path / "config.yaml").is_file():
        raise CheckpointError(
            f"`resume` must be a run directory, but {run!r} has no config.yaml; give the folder of one run"
        )
    try:
        values = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"), resolve=True)
    except Exception as error:
        raise CheckpointError(f"{path / 'config.yaml'} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path / 'config.yaml'} must hold the keys of a run, but holds something else; restore the file"
        )
    return {str(k): v for k, v in values.items()}


def _refuse_other_answer(plan: _Plan) -> None:
    named = [*plan.groups, *plan.values, *plan.mappings]
    refused = [name for name in named if not any(name == k or name.startswith(f"{k}.") for k in RESUMABLE)]
    allowed = ", ".join(RESUMABLE[:-1])
    if refused:
        raise ConfigError(
            f"`{name}` cannot be changed when a run is resumed, since the answer would be that of another experiment; "
            f"only {allowed} can: leave it out, or start a new run"
            for name in refused
        )


def _on_top_of(run: str, plan: _Plan, config_dir: str | None) -> dict[str, Any]:
    """A run's own values, and what is overridden."""
    values = saved_values(run)
    if not (plan.groups or plan.values.keys() - {"resume"} or plan.mappings):
        return values
    fresh = _compose(plan, config_dir)
    for group in plan.groups:
        values[group] = fresh[group]
    for name in [*plan.values, *plan.mappings]:
        _set(values, name, _get(fresh, name))
    return values


def _broken_promises(saved: Mapping[str, Any], plan: _Plan) -> list[str]:
    notices = []
    changed = {*plan.groups, *plan.values}
    if {"train.steps", "train.epochs"} & changed and "cosine" in str(saved.get("schedule", {}).get("name")):
        notices.append(
            "a new number of steps changes the cosine schedule, so the steps before were taken with other learning rates"
        )
    if "device" in changed or any(name.startswith("device.") for name in changed):
        notices.append(
            "another device or thread count may round differently: the bits may differ from those of a run never stopped"
        )
    return notices


def _get(values: Mapping[str, Any], path: str) -> Any:
    for part in path.split("."):
        values = values[part]
    return values


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        values = values.setdefault(part, {})
    values[last] = value
