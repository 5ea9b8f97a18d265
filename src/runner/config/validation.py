"""Check plain values against the schema and convert them to frozen dataclasses.

Plain values are what YAML and overrides give. `build` returns every problem, not only the first. A problem is a sentence with
the dotted key, the requirement, the value, and a remedy.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from runner.config.introspection import alternatives, hints, keys, names_offered, paths, variants
from runner.config.parts import Key
from runner.errors import MOST_PROBLEMS

T = TypeVar("T")
MISSING = "???"
"""Value in YAML that the user must replace."""
_LARGEST_INT64 = 2**63 - 1
_CALLS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
"""Keys with which `hydra.utils.instantiate` calls code."""


def build(kind: type[T], value: Any, path: str = "") -> tuple[T | None, list[str]]:
    """Build a dataclass from plain values. Return it, or None, and all problems of the values."""
    if not isinstance(value, Mapping):
        subject = f"`{path}`" if path else "the configuration"
        return None, [f"{subject} must be a group of keys, got {shown(value)}; write its keys below it"]
    fields = hints(kind)  # type: ignore[arg-type]  # a class is hashable
    prefix = f"{path}." if path else ""
    strange = [str(name) for name in value if name not in fields]
    # The nearest key takes long to find, and is of use for the first ones only.
    problems = [_unknown_field(kind, name, path) for name in strange[:MOST_PROBLEMS]]
    problems += [f"`{prefix}{name}` is not a key; remove it" for name in strange[MOST_PROBLEMS:]]
    values: dict[str, Any] = {}
    for name, hint in fields.items():
        if name not in value:
            problems.append(f"`{prefix}{name}` is missing; it must be {requirement(hint, keys(kind).get(name))}")
            continue
        values[name], found = _convert(hint, keys(kind).get(name, Key("")), value[name], prefix + name)
        problems += found
    return (None, problems) if problems else (kind(**values), [])


def replaced(config: T, path: str, value: Any, prefix: str = "") -> tuple[T, list[str]]:
    """Return a copy of a configuration with another value at a dotted key, checked as in `build`.

    If the value does not fit, return the configuration itself and the problems.
    """
    name, _, rest = path.partition(".")
    kind: Any = type(config)
    hint, present = hints(kind)[name], getattr(config, name)
    if rest and dataclasses.is_dataclass(present):
        inner, problems = replaced(present, rest, value, f"{prefix}{name}.")
    else:
        new = {**present, rest: value} if rest else value
        inner, problems = _convert(hint, keys(kind).get(name, Key("")), new, prefix + name)
    return (config, problems) if problems else (dataclasses.replace(config, **{name: inner}), [])  # type: ignore[type-var]


def closest(name: str, known: Sequence[str]) -> str | None:
    """Return the known dotted key that an unknown one most likely stands for, or None.

    Keys of the same group are tried first, then whole paths, then the last part of each path.
    """
    group, _, last = name.rpartition(".")
    siblings = [k for k in known if group and k.rpartition(".")[0] == group]
    near = [] if siblings else difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    for candidates in (siblings, known):
        by_last = {k.rpartition(".")[2]: k for k in reversed(candidates)}
        near += [by_last[match] for match in difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.7)]
    return near[0] if near else None


def unknown(path: str, known: Sequence[str]) -> str:
    """Return the message for a dotted key that the schema does not have."""
    if path.rpartition(".")[2] in _CALLS:
        return _no_call(path, known)
    guess = closest(path, known)
    hint = f"did you mean `{guess}`?" if guess else "see docs/config.md for the list of keys"
    return f"`{path}` is not a key; {hint}"


def _no_call(path: str, known: Sequence[str]) -> str:
    """Return the message for a key by which Hydra would call code."""
    instead = own_code(path.partition(".")[0], known) or "remove it"
    return f"`{path}` is not a key, since a configuration does not call code; {instead}"


def own_code(group: str, known: Sequence[str], name: str = "package.module:Class") -> str:
    """Return how to name a class of the user's own for a group with these known keys; empty for a group that takes none."""
    target = next((key for key in (f"{group}.source", f"{group}.target") if key in known), None)
    if target is None or f"{group}.kwargs" not in known:
        return ""
    return (
        f"for a class of your own write {group}=custom {target}={name} {group}.kwargs={{…}} "
        "and trust its package with --trust"
    )


def _keys_of(nested: Mapping[str, type], path: str) -> list[str]:
    """Return the dotted keys of all classes that a group may hold."""
    return [f"{path}.{name}" for kind in nested.values() for name in hints(kind)]


def _unknown_field(kind: type, name: str, path: str) -> str:
    """Return the message for a field that a dataclass does not have."""
    if not path:
        return unknown(name, list(paths(kind)))
    choices = getattr(kind, "choices", {})
    if name in _CALLS:
        return _no_call(f"{path}.{name}", _keys_of(choices, path))
    names = [field for field in hints(kind) if field != "name"]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.65)
    if near:
        return f"`{path}.{name}` is not a key; did you mean `{path}.{near[0]}`?"
    remedy = (
        f"add {path}=custom, or remove it" if "custom" in choices and name in hints(choices["custom"]) else "remove it"
    )
    return f"`{path}.{name}` is not a key of {kind.__name__.lower()}, which has {', '.join(names) or 'none'}; {remedy}"


def _convert(hint: Any, meaning: Key, value: Any, path: str) -> tuple[Any, list[str]]:
    """Return a value converted to the type of its field, and the problems if it does not fit."""
    nested, options = variants(hint), alternatives(hint)
    if nested and not (value is None and type(None) in options):
        return _convert_group(nested, value, path)
    if isinstance(value, float) and float in options:
        # 1.0 is a fraction where 1 is a number of rows, so a float must not become an integer.
        options = tuple(option for option in options if option is not int)
    for option in options if value != MISSING else ():
        fits, converted = _convert_option(option, meaning, value)
        if fits:
            return converted, []
    if value == MISSING:
        return None, [f"`{path}` is missing; give {requirement(hint, meaning)} with {path}=…"]
    return None, [
        f"`{path}` must be {requirement(hint, meaning)}, got {shown(value)}{_remedy(hint, meaning, value, path)}"
    ]


def _convert_group(nested: dict[str, type], value: Any, path: str) -> tuple[Any, list[str]]:
    if "" in nested:
        return build(nested[""], value, path)
    if not isinstance(value, Mapping):
        return build(next(iter(nested.values())), value, path)
    name, choices = value.get("name", MISSING), names_offered(nested, nested)
    if name == MISSING and (calls := [key for key in _CALLS if key in value]):
        return None, [_no_call(f"{path}.{calls[0]}", _keys_of(nested, path))]
    if name == MISSING:
        return None, [f"`{path}.name` is missing; it must be one of {', '.join(choices)}"]
    if not isinstance(name, str) or name not in nested:
        near = difflib.get_close_matches(str(name), choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return None, [f"`{path}.name` must be one of {', '.join(choices)}, got {shown(name)}{hint}"]
    return build(nested[name], value, path)


def _convert_option(option: Any, meaning: Key, value: Any) -> tuple[bool, Any]:  # noqa: PLR0911 - one line a type
    """Return whether a value fits one member of a union, and the converted value."""
    origin = get_origin(option)
    if option is type(None):
        return value is None, None
    if origin is Literal:
        return isinstance(value, str) and value in get_args(option), value
    if option is Any:
        return _is_plain(value), value
    if option is bool:
        return isinstance(value, bool), value
    if option is str:
        fits = isinstance(value, str) and (meaning.pattern is None or re.fullmatch(meaning.pattern, value) is not None)
        return fits, normalized(value) if fits and meaning.names else value
    if option in (int, float):
        return _convert_number(option, meaning, value)
    if origin is tuple:
        return _convert_sequence(get_args(option), meaning, value)
    if origin is dict:
        return _convert_mapping(get_args(option), meaning, value)
    raise TypeError(f"the schema has a type that validation does not support: {option}")


def _is_plain(value: Any) -> bool:
    """Return whether a value is null, a string, a finite number, true, false, or a list or mapping of such values."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(entry) for name, entry in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, bool)) or _convert_number(type(value), Key(""), value)[0]


def _convert_number(option: Any, meaning: Key, value: Any) -> tuple[bool, Any]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False, None
    # math.isfinite would raise for an integer beyond the range of floats. This comparison is False for nan as well.
    if not abs(value) <= (_LARGEST_INT64 if option is int else sys.float_info.max):
        return False, None
    if option is int and value != int(value):
        return False, None
    return meaning.allows(value), option(value)


def _convert_sequence(items: tuple[Any, ...], meaning: Key, value: Any) -> tuple[bool, Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False, None
    expected = [items[0]] * len(value) if items[-1] is Ellipsis else list(items)
    if len(expected) != len(value):
        return False, None
    converted = []
    for item, v in zip(expected, value, strict=True):
        fitting = [c for fits, c in (_convert_option(o, meaning, v) for o in alternatives(item)) if fits]
        if not fitting:
            return False, None
        converted.append(fitting[0])
    return True, tuple(converted)


def _convert_mapping(items: tuple[Any, ...], meaning: Key, value: Any) -> tuple[bool, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        return False, None
    converted = {normalized(k) if meaning.names else k: _convert_option(items[1], meaning, v) for k, v in value.items()}
    return all(fits for fits, _ in converted.values()), {k: v for k, (_, v) in converted.items()}


def normalized(text: str) -> str:
    """Return a name of a column or parameter in the form in which names are compared (Unicode's NFC)."""
    return unicodedata.normalize("NFC", text)


def requirement(hint: Any, meaning: Key | None = None) -> str:
    """Return the type and bounds of a field as text, such as "an integer of at least 1 or null"."""
    meaning = meaning or Key("")
    phrases = [_phrase(option, meaning) for option in alternatives(hint) if option is not type(None)]
    phrases += ["null"] if type(None) in alternatives(hint) else []
    # A comma keeps the alternatives of a list's items apart from those of the list.
    separator = ", or " if any(get_origin(option) is tuple for option in alternatives(hint)) else " or "
    return separator.join(dict.fromkeys(phrases))


def _phrase(option: Any, meaning: Key) -> str:
    """Return one member of a union as text."""
    origin, bounds = get_origin(option), meaning.bounds()
    if origin is Literal:
        choices = get_args(option)
        return ("one of " if len(choices) > 1 else "") + ", ".join(choices)
    if origin is tuple:
        items = [a for a in get_args(option) if a is not Ellipsis]
        count = "" if get_args(option)[-1] is Ellipsis else f" of {len(items)} items"
        return f"a list{count}, each {'item ' if not count else ''}{requirement(items[0], meaning)}"
    if origin is dict:
        each = get_args(option)[1]
        plain = {float: "finite numbers", str: "strings", Any: "values as YAML has them"}
        return f"a mapping from names to {plain[each] if each in plain else requirement(each, meaning)}"
    if dataclasses.is_dataclass(option):
        return "a group of keys"
    if option is str and meaning.pattern:
        return f"a string that matches {meaning.pattern}"
    names = {bool: "true or false", str: "a string", int: "an integer", float: "a finite number"}
    return f"{names[option]} {bounds}" if bounds and option in (int, float) else names[option]


def _remedy(hint: Any, meaning: Key, value: Any, path: str) -> str:
    """Return the end of the message for a value that does not fit; empty if the value suggests no remedy."""
    options = alternatives(hint)
    choices = [c for option in options if get_origin(option) is Literal for c in get_args(option)]
    near = difflib.get_close_matches(str(value).lower(), choices, n=1, cutoff=0.5) if isinstance(value, str) else []
    if near:
        return f"; did you mean {near[0]}?"
    if isinstance(value, bool) and (choices or str in options):
        return "; put it in quotes, because YAML reads yes, no, on and off as booleans"
    if isinstance(value, (int, float)) and str in options:
        return "; put it in quotes"
    if isinstance(value, Mapping) and dict[str, str] in options:
        return "; put each name in quotes"
    lists = [option for option in options if get_origin(option) is tuple]
    if isinstance(value, (int, float, str)) and any(_convert_option(option, meaning, [value])[0] for option in lists):
        return f"; write {path}=[{value}]"
    return ""


def shown(value: Any) -> str:
    """Return a value as the user would write it in YAML, with strings in quotes and long values shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return cut(repr(value))
    if isinstance(value, int) and abs(value) > _LARGEST_INT64:
        return "an integer of more than 64 bits"  # Python refuses to print more than 4,300 digits
    return cut(str(value))


def cut(text: str) -> str:
    """Return at most 120 characters of a text, with an ellipsis at the end if it is longer."""
    return text if len(text) <= 120 else f"{text[:117]}…"
