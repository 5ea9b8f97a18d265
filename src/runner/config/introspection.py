"""Read the schema: its fields, types, variants, dotted keys and flags.

A dotted key, or path, is a string such as "optimizer.lr". A variant is a dataclass that a field may hold.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from runner.config.parts import Key, Part


@cache
def hints(kind: Any) -> dict[str, Any]:
    """Return the resolved type of each field of a dataclass."""
    resolved = get_type_hints(kind)
    return {field.name: resolved[field.name] for field in dataclasses.fields(kind)}


def keys(kind: type) -> dict[str, Key]:
    """Return the meaning of each field of a dataclass that is a key. Fields that are groups are left out."""
    return {field.name: field.metadata["key"] for field in dataclasses.fields(kind) if "key" in field.metadata}


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def variants(hint: Any) -> dict[str, type]:
    """Return the dataclasses that a field may hold, by their `name`. A plain nested dataclass has the name ""."""
    found: dict[str, type] = {}
    for option in alternatives(hint):
        if isinstance(option, type) and Part in option.__bases__:
            found.update(option.choices)  # type: ignore[attr-defined]
        elif dataclasses.is_dataclass(option) and isinstance(option, type):
            names = get_args(hints(option).get("name", Literal[""]))
            found.update(dict.fromkeys(names, option))
    return found


def offered(kind: type, group: str, options: Iterable[str]) -> list[str]:
    """Return the options of a group that lists of choices have."""
    hint = hints(kind).get(group)
    return names_offered({} if hint is None else variants(hint), options)


def names_offered(nested: Mapping[str, type], names: Iterable[str]) -> list[str]:
    """Return those of these names whose class is offered, or is unknown."""
    return [name for name in names if getattr(nested.get(name), "offered", True)]


def paths(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of every variant of the schema, including groups."""
    for name, hint in hints(kind).items():
        yield prefix + name
        for variant in dict.fromkeys(variants(hint).values()):
            yield from paths(variant, f"{prefix}{name}.")


def keys_where(kind: type, condition: Callable[[Key], bool], prefix: str = "") -> tuple[str, ...]:
    """Return the dotted keys that meet a condition. A group that meets it stands for all its keys."""
    found: list[str] = []
    for field in dataclasses.fields(kind):
        meaning = field.metadata.get("key") or field.metadata.get("group")
        if meaning is not None and condition(meaning):
            found.append(prefix + field.name)
            continue
        for variant in dict.fromkeys(variants(hints(kind)[field.name]).values()):
            found += keys_where(variant, condition, f"{prefix}{field.name}.")
    return tuple(dict.fromkeys(found))


def field_types(kind: type, path: str) -> list[Any]:
    """Return the type of a dotted key in each variant that has it."""
    name, _, rest = path.partition(".")
    hint = hints(kind).get(name)
    if hint is None or not rest:
        return [] if hint is None else [hint]
    return [found for variant in dict.fromkeys(variants(hint).values()) for found in field_types(variant, rest)]


def is_group(kind: type, path: str) -> bool:
    """Return whether a dotted key holds keys of its own."""
    return any(variants(hint) for hint in field_types(kind, path))


def is_mapping(kind: type, path: str) -> bool:
    """Return whether a dotted key holds names of the user's choice, as `model.start` does."""
    return any(get_origin(option) is dict for hint in field_types(kind, path) for option in alternatives(hint))


def is_within(path: str, keys: Iterable[str]) -> bool:
    """Return whether a dotted key is one of these keys, or in a group that is."""
    return any(path == key or path.startswith(f"{key}.") for key in keys)


def is_lane(kind: type, path: str) -> bool:
    """Return whether vmapped trials may differ in a dotted key, or in the mapping that it is an entry of."""
    name, _, rest = path.partition(".")
    hint = hints(kind).get(name)
    if hint is None:
        return False
    if not rest or get_origin(hint) is dict:
        meaning = keys(kind).get(name)
        return meaning is not None and meaning.lane and (get_origin(hint) is dict) == bool(rest)
    results = [
        is_lane(variant, rest)
        for variant in dict.fromkeys(variants(hint).values())
        if field_types(variant, rest) or is_mapping(variant, rest.rpartition(".")[0])
    ]
    return bool(results) and all(results)


def without(values: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return a copy of plain values without these dotted keys."""
    result = dict(values)
    for path in keys:
        group, _, name = path.rpartition(".")
        holder = result
        for step in group.split(".") if group else ():
            holder[step] = dict(holder[step])
            holder = holder[step]
        holder.pop(name, None)
    return result


def without_lanes(config: Any) -> dict[str, Any]:
    """Return the values that vmapped trials must have in common. A lane key is replaced by whether it is null."""
    meanings = keys(type(config))
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if name in meanings and meanings[name].lane:
            result[name] = value is None
        else:
            result[name] = without_lanes(value) if dataclasses.is_dataclass(value) else value
    return result
