"""The launchers and sweepers of `-m`: a closed table with the keys of each, and the checks that nothing else reaches Hydra.

Hydra instantiates what a `_target_` names, with the keys beside it. So arguments are read against the table before Hydra
sees them, whether they were typed or stored in a `sweep.json`, and the configuration that Hydra composes is checked again
before anything is instantiated.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config import introspection, validation
from runner.config.hydra_adapter import CONF, reason_of
from runner.config.overrides import key_of, values_of
from runner.errors import ConfigError
from runner.sweep.optuna_options import OptunaOptions
from runner.sweep.process_pool import PoolOptions

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

PREFIXES = ("hydra/launcher", "hydra/sweeper", "hydra.launcher.", "hydra.sweeper.")
"""Beginnings of the arguments that this module reads."""

STORAGE = "hydra.sweeper.storage"
"""Setting that names a file outside the sweep directory."""


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The keys of a launcher or sweeper that has none."""


@dataclass(frozen=True)
class Plugin:
    """A launcher or sweeper: its class, and the dataclass of its keys."""

    target: str
    options: type | None = NoOptions
    """None for a plugin of others, which brings the dataclass of its keys along."""
    extra: str = ""
    """Extra of this package that installs the plugin."""

    @property
    def own(self) -> bool:
        """Whether its keys are in the table. Keys of other plugins may hold commands, so that they are never taken from a file."""
        return self.options is not None

    @property
    def installed(self) -> bool:
        """Whether this Python has the plugin."""
        return not self.extra or importlib.util.find_spec(self.target.rpartition(".")[0].rpartition(".")[0]) is not None


_JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
_SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
_RAY = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"

PLUGINS = {
    "launcher": {
        "vmap": Plugin("hydra_plugins.runner_plugins.VmapLauncher"),
        "pool": Plugin("hydra_plugins.runner_plugins.PoolLauncher", PoolOptions),
        "basic": Plugin("hydra._internal.core_plugins.basic_launcher.BasicLauncher"),
        "joblib": Plugin(_JOBLIB, None, "sweep"),
        "submitit_local": Plugin(f"{_SUBMITIT}.LocalLauncher", None, "slurm"),
        "submitit_slurm": Plugin(f"{_SUBMITIT}.SlurmLauncher", None, "slurm"),
        "ray": Plugin(_RAY, None, "ray"),
    },
    "sweeper": {
        "grid": Plugin("hydra_plugins.runner_plugins.GridSweeper"),
        "optuna": Plugin("hydra_plugins.runner_plugins.OptunaSweeper", OptunaOptions),
        "basic": Plugin("hydra._internal.core_plugins.basic_sweeper.BasicSweeper"),
    },
}
"""Kind → name → plugin. Nothing else is ever instantiated."""


def read(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return arguments for Hydra in the form in which it takes them, and the problems with them."""
    problems: list[str] = []
    settings: list[Override] = []
    chosen: dict[str, Override] = {}
    for word in words:
        override = _parsed(word, problems)
        if override is None:
            continue
        if override.key_or_group in ("hydra/launcher", "hydra/sweeper"):
            chosen[override.key_or_group.partition("/")[2]] = override
        else:
            settings.append(override)
    problems += [problem for kind, override in chosen.items() if (problem := _choice_problem(kind, override))]
    if problems:
        return [], problems
    names = _defaults() | {kind: str(override.value()) for kind, override in chosen.items()}
    result = [_line(override) for override in chosen.values()]
    for override in settings:
        kind = override.key_or_group.split(".")[1]
        word, problem = _setting(kind, names[kind], override)
        result.append(word)
        problems += [problem] if problem else []
    return result, problems


def _parsed(word: str, problems: list[str]) -> Override | None:
    """Return an argument as parsed by Hydra. If it is no choice or setting, add the problem and return None."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    name, _, text = word.partition("=")
    name = name.lstrip("+")
    try:
        override = OverridesParser.create().parse_override(word)
    except (HydraException, ValueError, RecursionError):
        problems.append(f"`{name}` has a value that cannot be read, {validation.cut(text)}; write {name}=VALUE")
        return None
    is_choice = name in ("hydra/launcher", "hydra/sweeper")
    if override.package is not None or not (is_choice or name.startswith(("hydra.launcher.", "hydra.sweeper."))):
        problems.append(
            f"`{name}` is not a setting of a sweep; write hydra/launcher=…, hydra/sweeper=… or hydra.launcher.KEY=…"
        )
        return None
    if override.is_sweep_override():
        problems.append(
            f"`{name}` must be one value for the whole sweep, got {validation.cut(text)}; write {name}=VALUE"
        )
        return None
    return override


def _choice_problem(kind: str, override: Override) -> str | None:
    """Return the problem with the choice of a launcher or sweeper, or None."""
    name, known = override.value(), PLUGINS[kind]
    if not isinstance(name, str) or name not in known:
        near = difflib.get_close_matches(str(name), list(known), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"`hydra/{kind}` must be one of {', '.join(known)}, got {validation.shown(name)}{hint}"
    if not known[name].installed:
        return (
            f"`hydra/{kind}`={name} needs a plugin that this Python lacks; "
            f'install it with `pip install "runner[{known[name].extra}]"`'
        )
    return None


def _setting(kind: str, name: str, override: Override) -> tuple[str, str | None]:
    """Return the argument that sets a key of a launcher or sweeper, and the problem with it, or None."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = override.key_or_group
    steps = path.split(".")[2:]
    keys = _keys(kind, name)
    known = [str(key) for key in keys if not str(key).startswith("_")]
    node: Any = keys
    prefix = ""
    for depth, step in enumerate(steps):
        has = OmegaConf.is_dict(node) and step in list(node)  # not `in node`, which resolves references
        is_mapping = OmegaConf.is_dict(node) and depth > 0 and OmegaConf.get_type(node) is dict
        if step.startswith("_") or not (has or is_mapping):
            near = difflib.get_close_matches(steps[0], known, n=1) if depth == 0 else []
            hint = f"did you mean `hydra.{kind}.{near[0]}`?" if near else "leave it out"
            return (
                path,
                f"`{path}` is not a key of hydra/{kind}={name}, which has {', '.join(known) or 'none'}; {hint}",
            )
        prefix = "++" if is_mapping else prefix  # Hydra adds to a mapping only then
        leaf = not has or OmegaConf.is_interpolation(node, step) or OmegaConf.is_missing(node, step)
        node = None if leaf else node[step]
    if special := next(_special_keys(override.value(), path), None):
        return path, f"`{special}` must not be given, because nothing in a configuration is executed; leave it out"
    try:
        OmegaConf.update(keys, ".".join(steps), override.value(), merge=True, force_add=True)
    except OmegaConfBaseException as error:
        return (
            path,
            f"`{path}` cannot be set to {validation.shown(override.value())}: {reason_of(error)}; correct the value",
        )
    return prefix + _line(override), None


def _keys(kind: str, name: str) -> DictConfig:
    """Return the keys of a launcher or sweeper: those of its dataclass."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins
    from omegaconf import OmegaConf

    options = PLUGINS[kind][name].options
    if options is not None:
        return OmegaConf.create(dict.fromkeys(introspection.hints(options)))
    Plugins.instance()  # it imports the plugins, which register their dataclasses
    found: DictConfig = ConfigStore.instance().load(f"hydra/{kind}/{name}.yaml").node.copy()
    return found


def _line(override: Override) -> str:
    return (override.input_line or "").lstrip("+")


def _defaults() -> dict[str, str]:
    """Return the launcher and the sweeper that `conf/sweep.yaml` chooses, by kind."""
    import yaml

    items = yaml.safe_load((CONF / "sweep.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {key: name for item in items if isinstance(item, dict) for key, name in item.items()}
    return {kind: chosen[f"override hydra/{kind}"] for kind in PLUGINS}


def never_from_files(words: Sequence[str]) -> list[str]:
    """Return the settings of plugins of others: they may hold commands, and must be typed again on resume."""
    typed = {key_of(word): word.partition("=")[2] for word in words}
    names = {kind: typed.get(f"hydra/{kind}", name) for kind, name in _defaults().items()}
    others = tuple(
        f"hydra.{kind}." for kind, name in names.items() if name in PLUGINS[kind] and not PLUGINS[kind][name].own
    )
    return [word for word in words if key_of(word).startswith(others)]


def not_from_files(saved: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Return the problems of saved settings: those that are never taken from a file and were not typed again."""
    again = {key_of(word) for word in typed}
    problems = []
    missing = [word for word in never_from_files(saved) if key_of(word) not in again]
    if missing:
        keys = ", ".join(f"`{key_of(word)}`" for word in missing)
        problems.append(
            f"{keys} must be typed again, because such settings may hold commands and are never taken from a file, "
            f"which has {', '.join(map(validation.cut, missing))}; add each of them, with this value or another"
        )
    journal = values_of([word for word in saved if key_of(word) == STORAGE]).get(STORAGE)
    if isinstance(journal, str) and ("${" in journal or not _has_content(Path(journal))):
        problems.append(
            f"`{STORAGE}` must be the journal in which the search was begun, got {validation.shown(journal)}, "
            "which has no study; restore it, or start a new sweep"
        )
    return problems


def _has_content(path: Path) -> bool:
    """Whether a path is a regular file that is not empty. A file that a stranger names must not be begun."""
    try:
        return path.is_file() and path.stat().st_size > 0
    except (OSError, ValueError):
        return False


def check(composed: DictConfig) -> None:
    """Check that a composed configuration makes Hydra instantiate one launcher and one sweeper of the table and nothing else.

    Raises `ConfigError`.
    """
    from omegaconf import OmegaConf

    hydra = OmegaConf.to_container(composed.hydra, resolve=False)
    assert isinstance(hydra, dict)
    choices, problems = hydra["runtime"]["choices"], list[str]()
    for kind, known in PLUGINS.items():
        node = composed.hydra[kind]
        values = (
            OmegaConf.to_container(node, resolve=True) if OmegaConf.is_dict(node) else None
        )  # a reference may give code
        target = values.pop("_target_", None) if isinstance(values, dict) else None
        plugin = known.get(str(choices.get(f"hydra/{kind}")))
        if plugin is None or target != plugin.target:
            problems.append(_executed(f"hydra.{kind}._target_"))
        problems += map(_executed, _special_keys(values, f"hydra.{kind}"))
        del hydra[kind]
    problems += [_executed(f"hydra.callbacks.{name}") for name in hydra.get("callbacks") or ()]
    problems += map(_executed, _special_keys(hydra, "hydra"))
    rest = {key: node for key, node in OmegaConf.to_container(composed, resolve=False).items() if key != "hydra"}  # type: ignore[union-attr]
    problems += map(_executed, _special_keys(rest, ""))
    if problems:
        raise ConfigError(problems)


def _executed(path: str) -> str:
    return f"`{path}` must not be in a configuration, because nothing in one is executed; remove it"


def _special_keys(value: Any, path: str) -> Iterator[str]:
    """Yield the path of every key that Hydra or logging would act on: `_target_` and its like, and `()` of a factory."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            here = f"{path}.{key}".lstrip(".")
            if str(key) == "()" or (str(key).startswith("_") and str(key).endswith("_")):
                yield here
            yield from _special_keys(inner, here)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for number, inner in enumerate(value):
            yield from _special_keys(inner, f"{path}.{number}")
