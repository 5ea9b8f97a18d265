"""What sets values and chooses options: the lines of files and the words of the command line, in the order in which they count.

The order is Hydra's own defaults list; the line of a key is that of its node in the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config import introspection, overrides, validation, versions
from runner.config.compose import Composed
from runner.config.hydra_adapter import CONF, group_arguments, hydra_session
from runner.config.overrides import Plan
from runner.config.schema import Config

GROUPS = tuple(group for group, hint in introspection.hints(Config).items() if introspection.variants(hint))


@dataclass(frozen=True)
class Setting:
    """A place that gives a key its value, or a group its option: a line of a file, or a word of the command line."""

    key: str
    value: Any
    """As it is written there: a reference is not resolved."""
    source: str
    line: int | None = None
    """None for a word, 0 for a file that is older than the key: the value is that of the time before it existed."""

    @property
    def place(self) -> str:
        """Where it is, for people."""
        if self.line == 0:
            return f"{self.source} is older than this key"
        return f"command line: {self.source}" if self.line is None else f"{self.source}:{self.line}"

    def plain(self) -> dict[str, Any]:
        """What JSON holds of it."""
        place = {"override": self.source} if self.line is None else {"file": self.source, "line": self.line or None}
        return {"value": self.value, **place}


@dataclass(frozen=True)
class _File:
    """A file of the configuration: what Hydra calls it, what people call it, and whose keys are in it."""

    config_path: str
    path: Path
    label: str
    package: str


@dataclass(frozen=True)
class Merged:
    """The files that are merged, in order, later ones over earlier ones; group → the file whose defaults list overrides it."""

    files: tuple[_File, ...]
    overriding: dict[str, str | None]


def merge(plan: Plan, config_dir: str | None) -> Merged:
    """Hydra's own decision about which files are merged, in which order, and which of their choices count."""
    from hydra.types import RunMode

    with hydra_session() as hydra:
        found = hydra.config_loader.compute_defaults_list("config", group_arguments(plan, config_dir), RunMode.RUN)
    # Ours before the user's, as in the search path.
    roots = [(CONF, "conf")] + ([(Path(config_dir), config_dir.rstrip("/"))] if config_dir else [])
    files = []
    for default in found.defaults:
        name = default.config_path.lstrip("/")
        own = [(root / f"{name}.yaml", f"{label}/{name}.yaml") for root, label in roots]
        # What Hydra adds for itself is no part of a run.
        there = [(path, label) for path, label in own if path.is_file() and not name.startswith("hydra/")]
        files += [_File(name, path, label, default.package) for path, label in there[:1]]
    overriding = {group: data.containing_config_path for group, data in found.overrides.override_metadata.items()}
    return Merged(tuple(files), overriding)


def settings(composed: Composed, plan: Plan, merged: Merged, run: str | None) -> list[Setting]:
    """Everything that sets a value, in order, later ones over earlier ones; `run` is the one that is gone on from or done again."""
    found = _of_files(merged.files)
    if run is not None:
        file = Path(run) / "config.yaml"
        # An option that is given takes the place of the run's own.
        fresh = [setting for setting in found if setting.key.partition(".")[0] in plan.groups]
        found = [*_newer(file), *_read(_File("", file, str(file), "")), *fresh]
    return [*found, *_of_words(composed.overrides, plan)]


def _newer(file: Path) -> list[Setting]:
    """The values of keys that did not exist when a run wrote its configuration."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(OmegaConf.load(file))
    there = dict(_flat(values))
    whole = _flat(versions.completed(Config, values))
    return [Setting(key, value, str(file), 0) for key, value in whole if key not in there]


def _of_words(words: Sequence[str], plan: Plan) -> list[Setting]:
    """The values of the command line. Of steps and epochs the one that is typed also sets the other, to null."""
    typed = {overrides.key_of(word): word for word in words}
    other = {"train.steps": "train.epochs", "train.epochs": "train.steps"}
    return [
        Setting(name, value, typed[name] if name in typed else typed[other[name]])
        for name, value in plan.values.items()
    ]


def _of_files(files: Sequence[_File]) -> list[Setting]:
    return [setting for file in files for setting in _read(file)]


def _read(file: _File) -> list[Setting]:
    """Every value in a YAML file, with its line."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(OmegaConf.load(file.path))
    values.pop("defaults", None)
    lines = dict(_lines(file.path))
    prefix = f"{file.package}." if file.package else ""
    # A name that YAML reads as a truth value is no key of any configuration.
    return [Setting(f"{prefix}{key}", value, file.label, lines[key]) for key, value in _flat(values) if key in lines]


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted key → line of every key in a YAML file; one that is merged in (<<) has the line that it is written on."""
    import yaml

    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))

    def below(node: yaml.Node, prefix: str) -> Iterator[tuple[str, int]]:
        if isinstance(node, yaml.MappingNode):
            loader.flatten_mapping(node)
            for key, value in node.value:
                yield f"{prefix}{key.value}", key.start_mark.line + 1
                yield from below(value, f"{prefix}{key.value}.")

    yield from below(loader.get_single_node(), "")


def history(key: str, value: Any, settings: Sequence[Setting]) -> Iterator[Setting]:
    """What set a key, in order: by itself, as a part of something larger, or, where a mapping was emptied, its entries."""
    for setting in settings:
        if setting.value == validation.MISSING:
            continue
        if setting.key == key:
            yield setting
        elif key.startswith(f"{setting.key}."):
            part = _part(setting.value, key.removeprefix(f"{setting.key}.").split("."))
            if part is not None:
                yield dataclasses.replace(setting, key=key, value=part)
        elif value == {} and setting.key.startswith(f"{key}."):
            entry = {setting.key.removeprefix(f"{key}."): setting.value}
            yield dataclasses.replace(setting, key=key, value=entry)


def _part(value: Any, names: Sequence[str]) -> Any:
    """What a group's value holds for a key below it; of a reference to a whole group the reference itself."""
    for name in names:
        if not isinstance(value, Mapping):
            break
        value = value.get(name)
    return None if isinstance(value, Mapping) else value


def choices(composed: Composed, plan: Plan, merged: Merged, run: str | None) -> dict[str, tuple[Setting, ...]]:
    """For each group all that choose its option, the one that counts last; of a run that was made before, the words alone."""
    typed = {overrides.key_of(word): word for word in composed.overrides}
    chosen: dict[str, tuple[Setting, ...]] = {
        group: (Setting(group, option, typed[group]),) for group, option in plan.groups.items()
    }
    if run is not None:
        return chosen
    found = {group: own for group, own in chosen.items() if group not in GROUPS}
    listed = {file.config_path: list(_listed(file)) for file in merged.files}
    for group in GROUPS:
        order = sorted(listed, key=lambda path: path == merged.overriding.get(group))
        own = [setting for path in order for setting in listed[path] if setting.key == group]
        found[group] = (*own, *chosen.get(group, ()))
    return found


def _listed(file: _File) -> Iterator[Setting]:
    """The choices in a file's defaults list."""
    import yaml

    root = yaml.compose(file.path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    lists = [value for key, value in root.value if key.value == "defaults"] if root else []
    items = [item for found in lists for item in found.value if isinstance(item, yaml.MappingNode)]
    folder = file.config_path.rpartition("/")[0]
    for key, value in (pair for item in items for pair in item.value):
        group = key.value.split()[-1].partition("@")[0]  # after "override", before a package
        path = group[1:] if group.startswith("/") else f"{folder}/{group}".lstrip("/")
        yield Setting(path, value.value, file.label, key.start_mark.line + 1)
