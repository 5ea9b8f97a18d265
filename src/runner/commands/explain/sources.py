"""Assignments of values and options in files and on the command line, in the order in which later ones replace earlier ones.

The order is that of Hydra's own defaults list. The line of a key is the line of its node in the YAML file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config import introspection, overrides, validation, versions
from runner.config.compose import Composed
from runner.config.hydra_adapter import CONF, group_arguments, hydra_session, user_file, yaml_values
from runner.config.overrides import Plan
from runner.config.schema import Config

GROUPS = tuple(group for group, hint in introspection.hints(Config).items() if introspection.variants(hint))


@dataclass(frozen=True)
class Assignment:
    """Assignment of a value to a key, or of an option to a group, by a line of a file or by a command-line override."""

    key: str
    value: Any
    """Value as it is written there, with references unresolved."""
    source: str
    """File, or override."""
    line: int | None = None
    """Line in the file. None for an override, 0 for a key that did not exist when the file was written."""

    @property
    def place(self) -> str:
        """Place of the assignment as text."""
        if self.line == 0:
            return f"{self.source} is older than this key"
        return f"command line: {self.source}" if self.line is None else f"{self.source}:{self.line}"

    def plain(self) -> dict[str, Any]:
        """Return the value and the place as JSON values."""
        place = {"override": self.source} if self.line is None else {"file": self.source, "line": self.line or None}
        return {"value": self.value, **place}


@dataclass(frozen=True)
class _File:
    """A file of the configuration."""

    config_path: str
    """Path that Hydra calls it by."""
    path: Path
    label: str
    """Path shown to the user."""
    package: str
    """Dotted key below which its values are merged."""


@dataclass(frozen=True)
class MergedFiles:
    """The files of a configuration in the order in which they are merged, later ones over earlier ones."""

    files: tuple[_File, ...]
    overriding: dict[str, str | None]
    """Group -> path of the file whose defaults list overrides its option."""


def merge_files(plan: Plan, config_dir: str | None) -> MergedFiles:
    """Return the files that Hydra merges, and which of them override the option of a group."""
    from hydra.types import RunMode

    with hydra_session() as hydra:
        defaults_list = hydra.config_loader.compute_defaults_list(
            "config", group_arguments(plan, config_dir), RunMode.RUN
        )
    # The package's own files come before the user's, as in the search path.
    roots = [(CONF, "conf")] + ([(Path(config_dir), config_dir.rstrip("/"))] if config_dir else [])
    files = []
    for default in defaults_list.defaults:
        name = default.config_path.lstrip("/")
        candidates = [(root / f"{name}.yaml", f"{label}/{name}.yaml") for root, label in roots]
        # Files that Hydra adds for itself are not part of a run.
        existing = [(path, label) for path, label in candidates if path.is_file() and not name.startswith("hydra/")]
        files += [_File(name, path, label, default.package) for path, label in existing[:1]]
    overriding = {
        group: data.containing_config_path for group, data in defaults_list.overrides.override_metadata.items()
    }
    return MergedFiles(tuple(files), overriding)


def assignments(composed: Composed, plan: Plan, merged: MergedFiles, run: str | None) -> list[Assignment]:
    """Return all assignments of values in order. `run` is the directory of the run that is resumed or repeated."""
    result = _from_files(merged.files)
    if run is not None:
        file = Path(run) / "config.yaml"
        # An option on the command line replaces the group of the saved run.
        replacing = [assignment for assignment in result if assignment.key.partition(".")[0] in plan.groups]
        result = [*_newer_keys(file), *_read(_File("", file, str(file), "")), *replacing]
    return [*result, *_from_overrides(composed.overrides, plan)]


def _newer_keys(file: Path) -> list[Assignment]:
    """Return the values of keys that did not exist when a run wrote its configuration."""
    values = yaml_values(user_file(file), file)
    written = dict(_flat(values))
    completed = _flat(versions.completed(Config, values))
    return [Assignment(key, value, str(file), 0) for key, value in completed if key not in written]


def _from_overrides(arguments: Sequence[str], plan: Plan) -> list[Assignment]:
    """Return the values on the command line. Setting steps or epochs also sets the other one to null."""
    given = {overrides.key_of(argument): argument for argument in arguments}
    other = {"train.steps": "train.epochs", "train.epochs": "train.steps"}
    return [
        Assignment(name, value, given[name] if name in given else given[other[name]])
        for name, value in plan.values.items()
    ]


def _from_files(files: Sequence[_File]) -> list[Assignment]:
    return [assignment for file in files for assignment in _read(file)]


def _read(file: _File) -> list[Assignment]:
    """Return every value in a YAML file with its line."""
    values = yaml_values(user_file(file.path), file.path)
    values.pop("defaults", None)
    lines = dict(_lines(file.path))
    prefix = f"{file.package}." if file.package else ""
    # A name that YAML reads as a boolean, such as `on`, is not a key of any configuration.
    return [Assignment(f"{prefix}{key}", value, file.label, lines[key]) for key, value in _flat(values) if key in lines]


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the dotted key and the line of every key in a YAML file; a key merged with << has the line it is written on."""
    import yaml

    loader = yaml.SafeLoader(user_file(path))

    def below(node: yaml.Node, prefix: str) -> Iterator[tuple[str, int]]:
        if isinstance(node, yaml.MappingNode):
            loader.flatten_mapping(node)
            for key, value in node.value:
                yield f"{prefix}{key.value}", key.start_mark.line + 1
                yield from below(value, f"{prefix}{key.value}.")

    yield from below(loader.get_single_node(), "")


def history(key: str, value: Any, assigned: Sequence[Assignment]) -> Iterator[Assignment]:
    """Yield the assignments of a key in order.

    A key is assigned by itself or as part of a group. If a mapping was emptied, its earlier entries are included.
    """
    for assignment in assigned:
        if assignment.value == validation.MISSING:
            continue
        if assignment.key == key:
            yield assignment
        elif key.startswith(f"{assignment.key}."):
            part = _part(assignment.value, key.removeprefix(f"{assignment.key}.").split("."))
            if part is not None:
                yield dataclasses.replace(assignment, key=key, value=part)
        elif value == {} and assignment.key.startswith(f"{key}."):
            entry = {assignment.key.removeprefix(f"{key}."): assignment.value}
            yield dataclasses.replace(assignment, key=key, value=entry)


def _part(value: Any, names: Sequence[str]) -> Any:
    """Return the value of a key within the value of a group; if that is a reference, return the reference."""
    for name in names:
        if not isinstance(value, Mapping):
            break
        value = value.get(name)
    return None if isinstance(value, Mapping) else value


def choices(composed: Composed, plan: Plan, merged: MergedFiles, run: str | None) -> dict[str, tuple[Assignment, ...]]:
    """Return the assignments of each group's option, the last one in effect.

    For a run that is resumed or repeated only the command line counts.
    """
    given = {overrides.key_of(argument): argument for argument in composed.overrides}
    on_command_line: dict[str, tuple[Assignment, ...]] = {
        group: (Assignment(group, option, given[group]),) for group, option in plan.groups.items()
    }
    if run is not None:
        return on_command_line
    result = {group: assigned for group, assigned in on_command_line.items() if group not in GROUPS}
    listed = {file.config_path: list(_listed(file)) for file in merged.files}
    for group in GROUPS:
        # The file whose choice is in effect comes last, whatever the order in which the files are merged.
        order = sorted(listed, key=lambda path: path == merged.overriding.get(group))
        in_files = [assignment for path in order for assignment in listed[path] if assignment.key == group]
        result[group] = (*in_files, *on_command_line.get(group, ()))
    return result


def _listed(file: _File) -> Iterator[Assignment]:
    """Yield the choices in the defaults list of a file."""
    import yaml

    root = yaml.compose(user_file(file.path), Loader=yaml.SafeLoader)
    lists = [value for key, value in root.value if key.value == "defaults"] if root else []
    items = [item for entries in lists for item in entries.value if isinstance(item, yaml.MappingNode)]
    folder = file.config_path.rpartition("/")[0]
    for key, value in (pair for item in items for pair in item.value):
        group = key.value.split()[-1].partition("@")[0]  # after "override", before a package
        path = group[1:] if group.startswith("/") else f"{folder}/{group}".lstrip("/")
        yield Assignment(path, value.value, file.label, key.start_mark.line + 1)
