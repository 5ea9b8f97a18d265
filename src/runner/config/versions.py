"""Configurations of older versions: complete the keys that they lack, and leave newer keys out of hashes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

from runner.config.introspection import hints, keys, variants
from runner.config.parts import ALWAYS


def completed(kind: type, values: Any) -> Any:
    """Return saved values in which each key newer than them has the value that it had before it existed.

    A missing group is added if every key of it names such a value, with the first variant for which that is so. Other
    missing keys stay missing, and `validation.build` refuses them.
    """
    if not isinstance(values, Mapping):
        return values
    result, meanings = dict(values), keys(kind)
    for name, hint in hints(kind).items():
        nested = variants(hint)
        if name in result:
            variant = _variant_of(nested, result[name])
            result[name] = result[name] if variant is None else completed(variant, result[name])
            continue
        before = meanings[name].before if name in meanings else _group_before(nested)
        if before is not ALWAYS:
            result[name] = copy.deepcopy(before)
    return result


def _variant_of(nested: Mapping[str, type], values: Any) -> type | None:
    """Return the dataclass that a group's values belong to, or None if no variant has their name."""
    if "" in nested:
        return nested[""]
    name = values.get("name") if isinstance(values, Mapping) else None
    return nested.get(name) if isinstance(name, str) else None


def _group_before(nested: Mapping[str, type]) -> Any:
    """Return a group's values before it existed: those of the first variant in which every key names its own."""
    for variant in dict.fromkeys(nested.values()):
        values = completed(variant, {})
        if values.keys() == hints(variant).keys():
            return values
    return ALWAYS


def without_newer(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return plain values without the keys that still equal their value from before they existed.

    Groups that become empty are left out too. A hash of the result therefore equals the hash of the same run in the
    version before those keys.
    """
    newer, groups = _newer(kind)
    unchanged = [name for name, before in newer if name in values and _same(values[name], before)]
    result = {name: value for name, value in values.items() if name not in unchanged} if unchanged else values
    for name, nested in groups:
        group = result.get(name)
        variant = _variant_of(nested, group)
        if variant is None or not isinstance(group, dict):
            continue
        inner = without_newer(variant, group)
        if inner is not group:
            result = {**result, name: inner}
            if not inner:
                del result[name]
    return result


def _same(value: Any, other: Any) -> bool:
    """Return whether two plain values are equal and of one type: 1.0 is a fraction and 1 is a number of rows."""
    return type(value) is type(other) and bool(value == other)


@cache
def _newer(kind: Any) -> tuple[list[tuple[str, Any]], list[tuple[str, dict[str, type]]]]:
    """Return the keys of a dataclass that `without_newer` may drop, with their values, and the groups with such keys."""
    newer = [(name, k.before) for name, k in keys(kind).items() if k.before is not ALWAYS and not k.hashed]
    nested = [(name, variants(hint)) for name, hint in hints(kind).items()]
    return newer, [(name, found) for name, found in nested if any(any(_newer(variant)) for variant in found.values())]
