"""Compose the configuration with Hydra: list the available groups and merge the chosen options."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config import introspection, validation
from runner.config.documents import MAX_YAML_BYTES, read_yaml
from runner.config.files import read_bytes
from runner.config.overrides import Plan
from runner.config.references import resolve_in_order
from runner.config.schema import Config
from runner.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

_PACKAGE = Path(__file__).parents[1]
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1] / "conf"
"""Folder of the values. It is in the package of an installed wheel, and at the top of a checkout."""

SCHEME = "runner"
"""Scheme of the user's folder in Hydra's search path: its files are read with `user_file`."""

_GLOBAL = "# @package _global_"
"""First line of a file whose keys belong to the whole configuration, as those of every experiment do."""

HYDRA = "hydra"
"""Key of Hydra's own settings, and folder of its launchers and sweepers. No file of the user may have either."""

_NOT_HYDRA = "Hydra's own settings keep their values; remove it, and choose launcher and sweeper with -m"
_OF_HYDRA = re.compile(r"""^(?P<key>["']?hydra["']?\s*:)|^\s*-\s*(?P<default>(override\s+)?/?hydra/[\w/]+)""")
"""Line of a file that sets Hydra's own settings: a block of them, or an option in the defaults list."""


def options(config_dir: str | None = None) -> dict[str, dict[str, str]]:
    """Return group → option → its description, for the built-in options and those in the user's `config_dir`.

    The description is the first comment of the option's file. Raises `ConfigError` if `config_dir` is not a folder of
    such groups.
    """
    if config_dir is not None and not os.path.isdir(config_dir):
        raise ConfigError(
            f"`--config-dir` must be a folder of configuration groups, got {config_dir!r}; correct the path"
        )
    if config_dir and os.path.lexists(Path(config_dir, HYDRA)):
        raise ConfigError(
            f"`--config-dir` must be a folder without {HYDRA}/, which would replace parts of Hydra itself, got {config_dir!r}; "
            "remove it, and choose launcher and sweeper with -m"
        )
    found: dict[str, dict[str, str]] = {}
    for root in [CONF] + ([Path(config_dir)] if config_dir else []):
        for file in sorted(root.glob("*/*.yaml")):
            if not file.stem.startswith("_"):
                found.setdefault(file.parent.name, {}).setdefault(file.stem, _description(file))
    return found


def _description(file: Path) -> str:
    """Return the first comment of a file; empty if there is none or the file cannot be read."""
    try:
        lines = read_bytes(file, MAX_YAML_BYTES, follow=True).decode("utf-8-sig", errors="replace").splitlines()
    except OSError:
        return ""
    comments = (line[1:].strip() for line in lines if line.startswith("#"))
    return next((text for text in comments if not text.startswith("@package")), "")


def composed_groups(plan: Plan, config_dir: str | None) -> DictConfig:
    """Return the composition of the chosen options. Raises `ConfigError` if a file cannot be read or merged."""
    if config_dir is not None:
        _check_files(plan, Path(config_dir))
        return _merged(group_arguments(plan, config_dir), config_dir)
    return copy.deepcopy(_built_in_groups(tuple(group_arguments(plan, None)), _file_versions()))


@functools.lru_cache(maxsize=256)
def _built_in_groups(arguments: tuple[str, ...], versions: tuple[tuple[str, int, int], ...]) -> DictConfig:
    """Return the composition of built-in options, which trials of a sweep and repeated runs of a process mostly share.

    Hydra takes longer to merge them (0.1 s) than a small run to train; `versions` makes a changed file count at once.
    """
    return _merged(list(arguments), None)


def _file_versions() -> tuple[tuple[str, int, int], ...]:
    """Return path, time of change and size of each built-in file."""
    files = ((str(file), file.stat()) for file in CONF.rglob("*.yaml") if file.is_file())
    return tuple((name, status.st_mtime_ns, status.st_size) for name, status in files)


def _merged(arguments: list[str], config_dir: str | None) -> DictConfig:
    """Return what Hydra composes from arguments. Raises `ConfigError` if a file cannot be read or merged."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        with hydra_session():
            composed = hydra.compose("config", arguments, return_hydra_config=True)
            problem = None if config_dir is None else _changed_setting(composed, config_dir)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError, RecursionError) as error:
        raise ConfigError(f"the configuration cannot be read: {reason_of(error)}") from None
    if problem is not None:
        raise ConfigError(problem)
    with open_dict(composed):
        del composed[HYDRA]
    return composed


def _changed_setting(composed: DictConfig, config_dir: str) -> str | None:
    """Return the problem with a file that changes a setting of Hydra itself, however it does that, or None.

    Launchers of Hydra compose the same files again for every trial, and act on these settings.
    """
    import hydra

    before, after = (
        _settings(config)
        for config in (hydra.compose("config", search_path(config_dir), return_hydra_config=True), composed)
    )
    changed = next((key for key in sorted(before | after) if before.get(key) != after.get(key)), None)
    if changed is None:
        return None
    return f"a file in {config_dir} changes `{HYDRA}.{changed}`, but {_NOT_HYDRA}"


def _settings(composed: DictConfig) -> dict[str, Any]:
    """Return Hydra's own settings without those that record what was composed."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(composed[HYDRA], resolve=False)
    values["job"].pop("override_dirname")
    return {key: value for key, value in values.items() if key not in ("runtime", "overrides")}


def group_arguments(plan: Plan, config_dir: str | None) -> list[str]:
    """Return the arguments that make Hydra use the chosen options."""
    groups = introspection.hints(Config)
    arguments = [f"{'' if group in groups else '+'}{group}={choice}" for group, choice in plan.groups.items()]
    return [*arguments, *search_path(config_dir)]


def search_path(config_dir: str | None) -> list[str]:
    """Return the argument that makes Hydra search the user's folder; none without a folder."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if config_dir is None:
        return []
    path = QuotedString(f"{SCHEME}://{os.path.realpath(config_dir)}", Quote.single).with_quotes()
    return [f"hydra.searchpath=[{path}]"]


@contextmanager
def hydra_session() -> Iterator[Any]:
    """Initialize Hydra with the built-in configuration. A Hydra that was initialized before is restored on exit."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    base = {"version_base": "1.3"} if "execution_whitelist" not in inspect.signature(hydra.main).parameters else {}
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), job_name="runner", **base):
            yield GlobalHydra.instance().hydra
    finally:
        # The singleton must be fetched again: on leaving its context, Hydra replaces the instance.
        GlobalHydra.instance().clear()
        if outer is not None:
            GlobalHydra.instance().initialize(outer)


def _check_files(plan: Plan, config_dir: Path) -> None:
    """Check the user's files that Hydra would silently ignore or misplace. Raises `ConfigError`."""
    files = {group: config_dir / group / f"{choice}.yaml" for group, choice in plan.groups.items()}
    problems = [_file_problem(group, file) for group, file in files.items() if os.path.lexists(file)]
    if any(problems):
        raise ConfigError(problem for problem in problems if problem)


def _file_problem(group: str, file: Path) -> str | None:
    if (CONF / group / file.name).exists():
        return f"{file} is hidden by the built-in `{group}`={file.stem}; rename your file"
    try:
        lines = user_file(file).splitlines()
    except ConfigError as error:
        return str(error)
    if group not in introspection.hints(Config) and not any(line.startswith(_GLOBAL) for line in lines):
        return (
            f"{file} must declare that its keys belong to the whole configuration; write `{_GLOBAL}` as its first line"
        )
    for number, line in enumerate(lines, 1):
        if found := _OF_HYDRA.match(line):
            what = found["default"] or f"{HYDRA}:"
            return f"{file} must not have `{what}` (line {number}), because {_NOT_HYDRA}"
    return None


def user_file(file: Path) -> str:
    """Return the text of a YAML file of the user. Raises `ConfigError` if it is not one that OmegaConf may read."""
    try:
        return read_yaml(file, follow=True)
    except OSError as error:
        raise ConfigError(f"{file} must be a readable file, but {error.strerror}; replace it") from None
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from None


def load_yaml(text: str, file: Path) -> Any:
    """Return the text of a file as OmegaConf reads it. The file is named in errors."""
    from omegaconf import OmegaConf

    stream: Any = io.StringIO(text)
    stream.name = str(file)
    return OmegaConf.load(stream)


def yaml_values(text: str, file: Path) -> Any:
    """Return the plain values in the text of a file, with references unresolved."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(load_yaml(text, file))


def option_text(group: str, choice: str, config_dir: str | None) -> str:
    """Return the text of an option's file; empty if there is no such file."""
    roots = [CONF, *([Path(config_dir)] if config_dir else [])]
    files = [root / group / f"{choice}.yaml" for root in roots]
    return next((user_file(file) for file in files if file.is_file()), "")


def set_key(config: DictConfig, name: str, value: Any) -> str | None:
    """Set a dotted key to a value, replacing what is there. Return the reason if that is impossible."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        OmegaConf.update(config, name, value, merge=False, force_add=True)
    except OmegaConfBaseException as error:
        return reason_of(error)
    return None


def resolved_values(config: DictConfig, plan: Plan) -> dict[str, Any]:
    """Return the plain values with references resolved.

    A reference that cannot be resolved is added to the problems of the plan, and its key is set to `MISSING`. Raises
    `ConfigError` for references that lead back to themselves.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError

    resolve_in_order(config)
    while (error := _unresolved(config)) is not None:
        name, reason = str(error.full_key), reason_of(error)
        if name == "None" or OmegaConf.is_missing(config, name):
            raise ConfigError(f"the configuration cannot be resolved: {reason}")
        if isinstance(error, InterpolationToMissingValueError):
            plan.dependent.add(name)  # the missing value is reported itself
        else:
            plan.problems.append(f"`{name}` cannot be resolved: {reason}; correct the reference, or give a value")
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
    except RecursionError:
        raise ConfigError(
            "the configuration cannot be resolved: a reference ${…} leads back to itself; write a value instead"
        ) from None
    return None


def reason_of(error: Exception) -> str:
    """Return the message of a library's error on one line, without its trailing details."""
    if isinstance(error, RecursionError):
        return "a file includes itself, or has too many levels; remove it from its own `defaults`"
    text = " ".join((str(error) or str(error.__cause__)).split())
    for details in (" Config search path:", " full_key:"):
        text = text.partition(details)[0]
    return text.rpartition("raised while resolving interpolation: ")[2] or type(error).__name__
