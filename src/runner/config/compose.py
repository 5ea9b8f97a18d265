"""From the words of the command line to a checked `Config`: Hydra composes, the schema judges. Nothing here imports torch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config import constraints, overrides, validation
from runner.config.overrides import Plan
from runner.config.schema import Config, plain
from runner.errors import CheckpointError, ConfigError, InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

HERE = Path(__file__).parents[1]
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parents[1] / "conf"
"""In a wheel the values lie in the package, in a checkout at its top."""

RESUMABLE = ("train.steps", "train.epochs", "device", "strategy", "launch", "record", "checkpoint", "resume")
"""What may be overridden when a run goes on; everything else would make it another experiment."""

GLOBAL = "# @package _global_"
"""The first line of a file whose keys are those of the whole configuration, as every experiment's are."""


@dataclass(frozen=True)
class Composed:
    """A checked configuration, how it was asked for, and what the user should hear about it."""

    config: Config
    overrides: tuple[str, ...]
    notices: tuple[str, ...] = ()
    refers: bool = False
    """Whether a value was written as a reference to another, ${…}, so that it may change with that one."""


def options(config_dir: str | None = None) -> dict[str, dict[str, str]]:
    """Group → option → its sentence (the first comment of its file), ours and the user's.

    Raises `ConfigError` when `config_dir` is not a folder.
    """
    if config_dir is not None and not (config_dir and Path(config_dir).is_dir()):
        raise ConfigError(
            f"`--config-dir` must be a folder of configuration groups, but {config_dir!r} is none; mend the path"
        )
    found: dict[str, dict[str, str]] = {}
    for root in [CONF] + ([Path(config_dir)] if config_dir else []):
        for file in sorted(root.glob("*/*.yaml")):
            if not file.stem.startswith("_"):
                found.setdefault(file.parent.name, {}).setdefault(file.stem, _sentence(file))
    return found


def _sentence(file: Path) -> str:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    comments = (line[1:].strip() for line in lines if line.startswith("#"))
    return next((text for text in comments if not text.startswith("@package")), "")


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
    saved = _saved(plan, base)
    if "experiment" in plan.undecided:
        return None
    composed = _composed(plan, config_dir, saved)
    plan.refers = "${" in str(composed)
    values = _resolved(composed, plan)
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


def _saved(plan: Plan, base: str | None) -> dict[str, Any] | None:
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
    allowed = ", ".join(RESUMABLE[:-1])
    return [
        f"`{name}` cannot be changed when a run is resumed, since the answer would be that of another experiment; "
        f"only {allowed} can: leave it out, or start a new run"
        for name in plan.names
        if not any(name == k or name.startswith(f"{k}.") for k in RESUMABLE)
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


def _composed(plan: Plan, config_dir: str | None, saved: Mapping[str, Any] | None) -> DictConfig:
    """The options that were chosen, or a run's own values; on top of them the values that were given."""
    from omegaconf import OmegaConf

    if saved is None:
        config = _chosen(plan, config_dir)
    else:
        config = OmegaConf.create(dict(saved))
        groups = plan.groups.keys() & validation.hints(Config).keys()
        fresh = _chosen(plan, config_dir) if groups else {}
        for group in groups:
            OmegaConf.update(config, group, fresh[group], merge=False)
    for name, value in plan.values.items():
        reason = _set(config, name, value)
        if reason is not None:
            plan.problems.append(f"`{name}` cannot be set to {validation.shown(value)}: {reason}; mend the value")
    return config


def _set(config: DictConfig, name: str, value: Any) -> str | None:
    """Put a value in its place, whatever stands there; gives the reason where that cannot be."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        OmegaConf.update(config, name, value, merge=False, force_add=True)
    except OmegaConfBaseException as error:
        return reason_of(error)
    return None


def _chosen(plan: Plan, config_dir: str | None) -> DictConfig:
    """What Hydra makes of the chosen options. Raises `ConfigError` where a file cannot be read or does not fit."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if config_dir is not None:
        _refuse_unfit(plan, Path(config_dir))
    try:
        with opened():
            return hydra.compose("config", chosen_words(plan, config_dir))
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError) as error:
        raise ConfigError(f"the configuration cannot be read: {reason_of(error)}") from None


def chosen_words(plan: Plan, config_dir: str | None) -> list[str]:
    """The words by which Hydra takes the options that were chosen."""
    groups = validation.hints(Config)
    words = [f"{'' if group in groups else '+'}{group}={choice}" for group, choice in plan.groups.items()]
    return [*words, *search_path(config_dir)]


def search_path(config_dir: str | None) -> list[str]:
    """The word by which Hydra finds the user's groups."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if config_dir is None:
        return []
    path = QuotedString(f"file://{Path(config_dir).resolve()}", Quote.single).with_quotes()
    return [f"hydra.searchpath=[{path}]"]


@contextmanager
def opened() -> Iterator[Any]:
    """Hydra over our configuration; another one that is in use is put back afterwards."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    base = {"version_base": "1.3"} if "execution_whitelist" not in inspect.signature(hydra.main).parameters else {}
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), job_name="runner", **base):
            yield GlobalHydra.instance().hydra
    finally:
        # Asked for again: leaving its context, Hydra puts another instance in place.
        GlobalHydra.instance().clear()
        if outer is not None:
            GlobalHydra.instance().initialize(outer)


def _refuse_unfit(plan: Plan, config_dir: Path) -> None:
    """Files of the user's that Hydra would pass over or misplace without a word. Raises `ConfigError`."""
    files = {group: config_dir / group / f"{choice}.yaml" for group, choice in plan.groups.items()}
    problems = [_unfit(group, file) for group, file in files.items() if file.is_file()]
    if any(problems):
        raise ConfigError(problem for problem in problems if problem)


def _unfit(group: str, file: Path) -> str | None:
    if (CONF / group / file.name).exists():
        return f"{file} is hidden by the built-in `{group}`={file.stem}; give your file another name"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return f"{file} must be a text in UTF-8, but cannot be read ({error}); save it as UTF-8"
    if group not in validation.hints(Config) and not any(line.startswith(GLOBAL) for line in lines):
        return f"{file} must say that its keys are those of the whole configuration; write `{GLOBAL}` as its first line"
    return None


def _resolved(config: DictConfig, plan: Plan) -> dict[str, Any]:
    """Plain values; a reference that leads nowhere becomes a problem of the plan, and its key one without a value."""
    from omegaconf import OmegaConf

    while (error := _unresolved(config)) is not None:
        name, reason = str(error.full_key), reason_of(error)
        if name == "None" or OmegaConf.is_missing(config, name):
            raise ConfigError(f"the configuration cannot be resolved: {reason}")
        plan.problems.append(f"`{name}` cannot be resolved: {reason}; mend the reference, or give a value")
        OmegaConf.update(config, name, validation.MISSING, merge=False)
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def _unresolved(config: DictConfig) -> OmegaConfBaseException | None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        return error
    return None


def reason_of(error: Exception) -> str:
    """What a library says, without its trailing details, on one line."""
    text = " ".join((str(error) or str(error.__cause__)).split())
    for details in (" Config search path:", " full_key:"):
        text = text.partition(details)[0]
    return text.rpartition("raised while resolving interpolation: ")[2] or type(error).__name__


def _tell_kept(values: Mapping[str, Any], plan: Plan, config_dir: str | None) -> None:
    """Name what an experiment sets over the option that is typed beside it: `optimizer=adam` with the lr of another."""
    from omegaconf import OmegaConf

    texts = [
        _text(group, choice, config_dir)
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
    alone = OmegaConf.to_container(_chosen(Plan({group: plan.groups[group] for group in typed}), config_dir))
    assert isinstance(alone, dict)
    kept = [
        f"`{group}.{name}`={values[group][name]} ({plan.groups[group]}: {own})"
        for group in sorted(typed)
        for name, own in alone[group].items()
        if values[group].get(name, own) != own and not any(n.startswith(f"{group}.{name}") for n in plan.values)
    ]
    if kept:
        plan.notices.append(f"kept from the experiment: {', '.join(kept)}")


def _text(group: str, choice: str, config_dir: str | None) -> str:
    roots = [CONF, *([Path(config_dir)] if config_dir else [])]
    files = [root / group / f"{choice}.yaml" for root in roots]
    return next((file.read_text(encoding="utf-8") for file in files if file.is_file()), "")


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
