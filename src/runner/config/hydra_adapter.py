"""Hydra, as far as it is used here: the groups there are, and what comes of the options that were chosen."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config import validation
from runner.config.overrides import Plan
from runner.config.schema import Config
from runner.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

HERE = Path(__file__).parents[1]
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parents[1] / "conf"
"""In a wheel the values lie in the package, in a checkout at its top."""

GLOBAL = "# @package _global_"
"""The first line of a file whose keys are those of the whole configuration, as every experiment's are."""


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


def chosen(plan: Plan, config_dir: str | None) -> DictConfig:
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


def text_of(group: str, choice: str, config_dir: str | None) -> str:
    """The text of an option's file; empty where there is none."""
    roots = [CONF, *([Path(config_dir)] if config_dir else [])]
    files = [root / group / f"{choice}.yaml" for root in roots]
    return next((file.read_text(encoding="utf-8") for file in files if file.is_file()), "")


def set_value(config: DictConfig, name: str, value: Any) -> str | None:
    """Put a value in its place, whatever stands there; gives the reason where that cannot be."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        OmegaConf.update(config, name, value, merge=False, force_add=True)
    except OmegaConfBaseException as error:
        return reason_of(error)
    return None


def resolved(config: DictConfig, plan: Plan) -> dict[str, Any]:
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
