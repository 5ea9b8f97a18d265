"""Read JSON and YAML that somebody else may have written, up to a size and a depth, and check it against a schema.

A few bytes can describe more values than any memory holds (YAML's aliases), or more levels than Python's parsers can descend.
Both are counted before a value is made.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from runner.config import introspection, validation, versions
from runner.config.files import MIB, read_bytes
from runner.errors import CheckpointError

FORMAT = 1
"""Newest format of a JSON file or a checkpoint that is read here, and the one that is written."""
MAX_BYTES = 32 * MIB
"""Largest JSON file that is read whole: its values take some twenty times as much memory."""
MAX_YAML_BYTES = MIB
MAX_VALUES = 20_000
"""Most values of a YAML file, with each alias counted as often as it is used. OmegaConf reads as many in two seconds."""
MAX_DEPTH = 64
"""Most levels of a document. Python's own limit is 1,000 calls, and some of its parsers need ten of them for a level."""

MAX_DIGITS = 400
"""Most digits of an integer in JSON, more than any float has. Reading an integer takes the square of its length."""
MAX_REFERENCES = 16
"""Most references in each other, ${a.${b}}. The parser of OmegaConf needs some fifty calls for each."""

_TAG = "tag:yaml.org,2002:"
_NUMBERS = {f"{_TAG}int": "an integer", f"{_TAG}float": "a number"}
_TAGS = {
    f"{_TAG}{name}" for name in ("str", "bool", "null", "int", "float", "seq", "map", "merge", "timestamp", "value")
}
"""Tags of plain YAML values. OmegaConf reads timestamps as texts."""


# ---------------------------------------------------------------------------------------------------------------- JSON


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `CheckpointError`, which calls the file `what`, if it cannot be read."""
    try:
        return parse_object(read_bytes(path, MAX_BYTES))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CheckpointError(f"{path} must be {what}, but cannot be read ({reason}); restore it") from None


def parse_object(text: bytes) -> dict[str, Any]:
    """Return the object that a JSON text describes. Raises ValueError with the reason for any other text."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value


def parse_json(text: bytes) -> Any:
    """Return the value that a JSON text describes. Raises ValueError with the reason for any other text."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"it has more than {MAX_DEPTH} levels") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    check_size(value, MAX_BYTES)
    return value


def check_size(value: Any, most: int) -> None:
    """Raise ValueError for a value with more than `MAX_DEPTH` levels or more than `most` values, shared ones counted again."""
    count, open_ones = 0, [iter((value,))]
    while open_ones:
        item = next(open_ones[-1], _END)
        count += 1
        if item is _END:
            open_ones.pop()
        elif isinstance(item, str):
            _check_text(item)
        elif isinstance(item, (dict, list, tuple)):
            if isinstance(item, dict):
                for name in item:
                    _check_text(str(name))
            open_ones.append(iter(item.values() if isinstance(item, dict) else item))
        if len(open_ones) > MAX_DEPTH + 1:
            raise ValueError(f"it has more than {MAX_DEPTH} levels")
        if count > 2 * most:  # the end of a collection is counted as well
            raise ValueError(f"it has more than {most:,} values")


_END = object()


def _check_text(text: str) -> None:
    """Raise ValueError for half of a surrogate pair: it can be read, and not be written again."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it has a character that UTF-8 lacks") from None


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"it has an integer of {len(text):,} digits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"`{validation.cut(twice)}` is given twice")
    return found


# -------------------------------------------------------------------------------------------------------------- schema


def checked(kind: type, values: Mapping[str, Any], path: Path, prefix: str = "") -> dict[str, Any]:
    """Return the values of a file, of which those of a dataclass were checked. Other values are returned as they are.

    A missing value is the one that it had before it existed. Raises `CheckpointError` with all problems, and for a file
    of a newer format.
    """
    problems = faults(kind, values, prefix)
    if problems:
        raise CheckpointError(f"{path}: {problem}" for problem in problems)
    completed: dict[str, Any] = versions.completed(kind, values)
    return completed


def faults(kind: type, values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return a sentence for each value that does not fit a dataclass; one alone for a newer format."""
    version = values.get("format")
    if type(version) is int and version > FORMAT:
        return [
            f"`format` must be at most {FORMAT}, got {version}; it was written by a newer version of runner, use that"
        ]
    _, problems = validation.build(kind, _known(kind, versions.completed(kind, values)), prefix)
    return [problem if ";" in problem else f"{problem}; restore the file" for problem in problems]


def _known(kind: Any, values: Any) -> Any:
    """Return the values of a dataclass's fields, at any depth. Others may have been added by a newer version."""
    if not isinstance(values, Mapping):
        return values
    hints = introspection.hints(kind)
    nested = {name: introspection.variants(hint).get("") for name, hint in hints.items()}
    return {
        name: _known(nested[name], value) if nested[name] else value for name, value in values.items() if name in hints
    }


# ---------------------------------------------------------------------------------------------------------------- YAML


def read_yaml(path: Path, *, follow: bool = False) -> str:
    """Return the text of a YAML file with a moderate number of values, each of which has a name and a plain type.

    Raises OSError, and ValueError with the line, the key and the reason.
    """
    try:
        text = read_bytes(path, MAX_YAML_BYTES, follow=follow).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    check_yaml(text)
    return text


def check_yaml(text: str) -> None:
    """Raise ValueError for a text that must not be given to a YAML loader. Faults of its syntax are left to the loader."""
    from yaml import YAMLError

    try:
        loader = _loader()(text)
        node = loader.get_single_node()
    except YAMLError:
        return
    if node is not None:
        _size(node, "", loader, {})


@cache
def _loader() -> Any:
    """Return PyYAML's loader with a limit of levels and of nodes."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        depth = 0
        count = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth, self.count = self.depth + 1, self.count + 1
            if self.depth > MAX_DEPTH:
                raise ValueError(f"line {self.line + 1}: it must have at most {MAX_DEPTH} levels; make it flatter")
            if self.count > 2 * MAX_VALUES:  # keys are nodes as well
                raise ValueError(f"it must have at most {MAX_VALUES:,} values; make it smaller")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    return Loader


def _size(node: Any, name: str, loader: Any, known: dict[Any, int]) -> int:
    """Return the number of values below a node, with shared ones counted again. Raises ValueError for odd ones."""
    if node in known:
        if not known[node]:
            raise _fault(node, name, "refers to itself; write the value out")
        return known[node]
    known[node] = 0  # it is being counted
    if node.tag not in _TAGS:
        raise _fault(node, name, f"has the type {validation.cut(node.tag)}; use a text, a number, a list or a mapping")
    if node.id == "mapping":
        size = 1 + sum(_size(value, key, loader, known) for key, value in _entries(node, name, loader))
    elif node.id == "sequence":
        size = 1 + sum(_size(item, name, loader, known) for item in node.value)
    else:
        _check_scalar(node, name, loader)
        size = 1
    if size > MAX_VALUES:
        raise _fault(node, name, f"describes more than {MAX_VALUES:,} values; use fewer, or fewer aliases (*)")
    known[node] = size
    return size


def _entries(node: Any, name: str, loader: Any) -> list[tuple[str, Any]]:
    """Return dotted key and value of each entry of a mapping. Raises ValueError for a key that is null, no text, or twice there."""
    entries: dict[str, Any] = {}
    for key, value in node.value:
        if key.id != "scalar" or key.tag == f"{_TAG}null":
            what = "null" if key.id == "scalar" else f"a {key.id}"
            raise _fault(key, name, f"has a key that is {what}; give it a name")
        _check_scalar(key, name, loader)
        path = f"{name}.{key.value}" if name else str(key.value)
        if path in entries and key.tag != f"{_TAG}merge":
            raise _fault(key, path, "is given twice; remove one of them")
        entries[path] = value
    return list(entries.items())


def _check_scalar(node: Any, name: str, loader: Any) -> None:
    try:
        node.value.encode()
        if node.tag in _NUMBERS:
            loader.construct_object(node)
    except UnicodeEncodeError:
        raise _fault(node, name, "has a character that UTF-8 lacks; correct it") from None
    except (ValueError, LookupError):
        fault = f"is not {_NUMBERS[node.tag]} that can be read, {validation.shown(node.value)}; put a text in quotes"
        raise _fault(node, name, fault) from None
    levels = reference_depth(node.value)
    if levels > MAX_REFERENCES:
        raise _fault(node, name, f"must nest at most {MAX_REFERENCES} references ${{…}}, got {levels}; use fewer")


def reference_depth(text: str) -> int:
    """Return how deep references ${…} are nested in a text."""
    return depth(text.replace("${", "\0"), "\0{", "}") if "${" in text else 0


def depth(text: str, opening: str, closing: str) -> int:
    """Return how deep pairs of characters are nested in a text."""
    level = deepest = 0
    for character in text:
        if character in opening:
            level += 1
            deepest = max(deepest, level)
        elif character in closing:
            level = max(level - 1, 0)
    return deepest


def _fault(node: Any, name: str, text: str) -> ValueError:
    subject = f"`{validation.cut(name)}`" if name else "the file"
    return ValueError(f"line {node.start_mark.line + 1}: {subject} {text}")
