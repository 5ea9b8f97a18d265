"""Typed configuration: what a field may hold, and every way in which a given value does not fit.

`build` turns plain values (what YAML and overrides give) into frozen dataclasses. It never stops at the first problem: it
returns all of them, each a sentence with the dotted key, what it must be, what it is, and what to do.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import pkgutil
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
MISSING = "???"
"""What YAML holds where the user must give a value."""
LARGEST_INT64 = 2**63 - 1
ALWAYS: Any = object()
"""What a key names as its value before it existed when it is as old as its group."""


@dataclass(frozen=True)
class Key:
    """The meaning of one field: a sentence, its unit, and its bounds (None: not bounded)."""

    meaning: str
    unit: str = ""
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    pattern: str | None = None
    lane: bool = False
    """Whether trials that differ in this value alone can be vmapped, as lanes of one program."""
    per_run: bool = False
    """Whether it says nothing of the program: trials that are vmapped may have any value of it."""
    changes: Literal["answer", "placement", "recording"] = "answer"
    """The answer of a run, or only where it is computed, or what is written down of it."""
    resumable: bool = False
    """Whether it may be overridden when a run is resumed."""
    before: Any = ALWAYS
    """The value that all runs had before the key existed, as YAML holds it. Older configurations are completed with it."""
    hashed: bool = False
    """Whether the key is in `config_hash` even while it has that value: hashes with it are older than this rule."""

    def bounds(self) -> list[str]:
        """The bounds that are set, in words."""
        given = {"above": self.above, "of at least": self.at_least, "below": self.below, "of at most": self.at_most}
        return [f"{words} {limit}" for words, limit in given.items() if limit is not None]

    def allows(self, number: float) -> bool:
        """Whether a number lies within the bounds."""
        return (
            (self.above is None or number > self.above)
            and (self.at_least is None or number >= self.at_least)
            and (self.below is None or number < self.below)
            and (self.at_most is None or number <= self.at_most)
        )


def key(meaning: str, **limits: Any) -> Any:
    """A dataclass field without a default: the value itself stands in `conf/`."""
    return field(metadata={"key": Key(meaning, **limits)})


def group(**flags: Any) -> Any:
    """A dataclass field that holds keys of its own, all of which have these flags of `Key`."""
    return field(metadata={"group": Key("", **flags)})


class Part:
    """One choice of a group of the configuration, such as a model: a dataclass bound to the builder of what it stands for.

    A group is a direct subclass with a field `name`. Its choices are subclasses with
    `class Mlp(ModelConfig, name="mlp", builder="runner.models.mlp:build")`. Fields that choices share stand in subclasses
    without a name.
    """

    choices: ClassVar[dict[str, type[Any]]]
    """Name → choice, of a group."""
    builder: ClassVar[str]
    """Module and function, as "package.module:function"; imported when the part is built."""

    def __init_subclass__(cls, *, name: str | None = None, builder: str | None = None, **binding: Any) -> None:
        super().__init_subclass__(**binding)
        if Part in cls.__bases__:
            cls.choices = {}
        if (name is None) != (builder is None):
            raise TypeError(f"{cls.__name__} must have both a name and a builder, or neither; give the other one")
        if name is None or builder is None:
            return
        if name in cls.choices:
            raise TypeError(f"{cls.__name__} must have a name of its own, but {name!r} is {cls.choices[name].__name__}")
        cls.choices[name], cls.builder = cls, builder
        meaning = next(
            own["name"] for base in cls.__mro__[1:] if dataclasses.is_dataclass(base) and "name" in (own := keys(base))
        )
        cls.__annotations__ = {"name": Literal[name], **cls.__annotations__}
        cls.name = key(meaning.meaning)  # type: ignore[attr-defined]  # the field of the dataclass it becomes

    def build(self, *arguments: Any) -> Any:
        """What the builder makes of this configuration and the arguments that its group gives."""
        return pkgutil.resolve_name(self.builder)(self, *arguments)

    def problems(self) -> Iterable[str]:
        """What is wrong with its values together, though each of them is right alone."""
        return ()


@cache
def hints(kind: Any) -> dict[str, Any]:
    """Field name → resolved type of a dataclass."""
    resolved = get_type_hints(kind)
    return {own.name: resolved[own.name] for own in dataclasses.fields(kind)}


def keys(kind: type) -> dict[str, Key]:
    """Field name → meaning of a dataclass whose fields were made by `key`; fields that are groups are left out."""
    return {f.name: f.metadata["key"] for f in dataclasses.fields(kind) if "key" in f.metadata}


def keys_where(kind: type, asked: Callable[[Key], bool], prefix: str = "") -> tuple[str, ...]:
    """Dotted keys for which `asked` holds; a group for which it holds stands for all its keys."""
    found: list[str] = []
    for own in dataclasses.fields(kind):
        meaning = own.metadata.get("key") or own.metadata.get("group")
        if meaning is not None and asked(meaning):
            found.append(prefix + own.name)
            continue
        for variant in dict.fromkeys(variants(hints(kind)[own.name]).values()):
            found += keys_where(variant, asked, f"{prefix}{own.name}.")
    return tuple(dict.fromkeys(found))


def is_within(path: str, keys: Iterable[str]) -> bool:
    """Whether a dotted key is one of these, or in a group that is."""
    return any(path == key or path.startswith(f"{key}.") for key in keys)


def without(values: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """A copy of plain values without these dotted keys."""
    found = dict(values)
    for path in keys:
        group, _, name = path.rpartition(".")
        holder = found
        for step in group.split(".") if group else ():
            holder[step] = dict(holder[step])
            holder = holder[step]
        holder.pop(name, None)
    return found


def without_lanes(config: Any) -> dict[str, Any]:
    """A configuration's values in which runs of one program are alike; of the others whether they are null."""
    own = keys(type(config))
    found: dict[str, Any] = {}
    for field_ in dataclasses.fields(config):
        value = getattr(config, field_.name)
        if field_.name in own and own[field_.name].lane:
            found[field_.name] = value is None
        else:
            found[field_.name] = without_lanes(value) if dataclasses.is_dataclass(value) else value
    return found


def completed(kind: type, values: Any) -> Any:
    """Saved values, with each key that is newer than they are at the value it had before it existed.

    A group is added where all of its keys name such a value; of several variants the first one that does. What else is
    missing stays missing, and `build` refuses it.
    """
    if not isinstance(values, Mapping):
        return values
    found, own = dict(values), keys(kind)
    for name, hint in hints(kind).items():
        nested = variants(hint)
        if name in found:
            option = _option(nested, found[name])
            found[name] = found[name] if option is None else completed(option, found[name])
            continue
        before = own[name].before if name in own else _group_before(nested)
        if before is not ALWAYS:
            found[name] = copy.deepcopy(before)
    return found


def _option(nested: Mapping[str, type], value: Any) -> type | None:
    """The dataclass of a group's values; None where there is none of that name."""
    if "" in nested:
        return nested[""]
    name = value.get("name") if isinstance(value, Mapping) else None
    return nested.get(name) if isinstance(name, str) else None


def _group_before(nested: Mapping[str, type]) -> Any:
    """What a group held before it existed: the first of its variants of which every key names its value."""
    for variant in dict.fromkeys(nested.values()):
        whole = completed(variant, {})
        if whole.keys() == hints(variant).keys():
            return whole
    return ALWAYS


def without_newer(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """A configuration's plain values without those keys that still have the value of the time before they existed.

    A group of which nothing is left is left out. So a hash of what is left is the one that the run had then.
    """
    newer, groups = _newer(kind)
    left = [name for name, before in newer if name in values and _same(values[name], before)]
    found = {name: value for name, value in values.items() if name not in left} if left else values
    for name, nested in groups:
        group = found.get(name)
        option = _option(nested, group)
        if option is None or not isinstance(group, dict):
            continue
        inner = without_newer(option, group)
        if inner is not group:
            found = {**found, name: inner}
            if not inner:
                del found[name]
    return found


def _same(value: Any, other: Any) -> bool:
    """Whether two plain values are one: 1.0 is a share where 1 is a row."""
    return type(value) is type(other) and bool(value == other)


@cache
def _newer(kind: Any) -> tuple[list[tuple[str, Any]], list[tuple[str, dict[str, type]]]]:
    """The keys of a dataclass that `without_newer` may leave out, with their values; and the groups that have such keys."""
    newer = [(name, own.before) for name, own in keys(kind).items() if own.before is not ALWAYS and not own.hashed]
    nested = [(name, variants(hint)) for name, hint in hints(kind).items()]
    return newer, [(name, found) for name, found in nested if any(any(_newer(variant)) for variant in found.values())]


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def variants(hint: Any) -> dict[str, type]:
    """The dataclasses that a field may hold, by the value of their `name`; a plain nested dataclass under ""."""
    found: dict[str, type] = {}
    for option in alternatives(hint):
        if isinstance(option, type) and Part in option.__bases__:
            found.update(option.choices)  # type: ignore[attr-defined]
        elif dataclasses.is_dataclass(option) and isinstance(option, type):
            names = get_args(hints(option).get("name", Literal[""]))
            found.update(dict.fromkeys(names, option))
    return found


def paths(kind: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key that some variant of the schema has, groups included."""
    for name, hint in hints(kind).items():
        yield prefix + name
        for variant in dict.fromkeys(variants(hint).values()):
            yield from paths(variant, f"{prefix}{name}.")


def field_types(kind: type, path: str) -> list[Any]:
    """The types that a dotted key has, one for each variant that knows it."""
    name, _, rest = path.partition(".")
    hint = hints(kind).get(name)
    if hint is None or not rest:
        return [] if hint is None else [hint]
    return [found for variant in dict.fromkeys(variants(hint).values()) for found in field_types(variant, rest)]


def is_lane(kind: type, path: str) -> bool:
    """Whether a dotted key, or the mapping that it is an entry of, is a value in which lanes of one program may differ."""
    name, _, rest = path.partition(".")
    hint = hints(kind).get(name)
    if hint is None:
        return False
    if not rest or get_origin(hint) is dict:
        own = keys(kind).get(name)
        return own is not None and own.lane and (get_origin(hint) is dict) == bool(rest)
    found = [
        is_lane(variant, rest)
        for variant in dict.fromkeys(variants(hint).values())
        if field_types(variant, rest) or is_mapping(variant, rest.rpartition(".")[0])
    ]
    return bool(found) and all(found)


def replaced(config: T, path: str, value: Any, prefix: str = "") -> tuple[T, list[str]]:
    """A copy with another value at a dotted key, checked as `build` does; the config itself and what is wrong, where it is."""
    name, _, rest = path.partition(".")
    kind: Any = type(config)
    hint, present = hints(kind)[name], getattr(config, name)
    if rest and dataclasses.is_dataclass(present):
        inner, problems = replaced(present, rest, value, f"{prefix}{name}.")
    else:
        given = {**present, rest: value} if rest else value
        inner, problems = _convert(hint, keys(kind).get(name, Key("")), given, prefix + name)
    return (config, problems) if problems else (dataclasses.replace(config, **{name: inner}), [])  # type: ignore[type-var]


def is_group(kind: type, path: str) -> bool:
    """Whether a dotted key holds keys of its own."""
    return any(variants(hint) for hint in field_types(kind, path))


def is_mapping(kind: type, path: str) -> bool:
    """Whether a dotted key holds names of the user's choice, as `model.start` does."""
    return any(get_origin(hint) is dict for hint in field_types(kind, path))


def closest(word: str, known: Sequence[str]) -> str | None:
    """The known dotted key that was most likely meant: in the same group, else by its whole path, else by its last part."""
    group, _, last = word.rpartition(".")
    siblings = [k for k in known if group and k.rpartition(".")[0] == group]
    near = [] if siblings else difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    for keys in (siblings, known):
        by_last = {k.rpartition(".")[2]: k for k in reversed(keys)}
        near += [by_last[name] for name in difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.7)]
    return near[0] if near else None


def unknown(path: str, known: Sequence[str]) -> str:
    """The sentence for a key that the schema does not have."""
    guess = closest(path, known)
    hint = f"did you mean `{guess}`?" if guess else "see docs/config.md for the keys there are"
    return f"`{path}` is not a key; {hint}"


def build(kind: type[T], value: Any, path: str = "") -> tuple[T | None, list[str]]:
    """A `kind` from plain values, or None and everything that is wrong with them."""
    if not isinstance(value, Mapping):
        whole = f"`{path}`" if path else "the configuration"
        return None, [f"{whole} must be a group of keys, but is {shown(value)}; write its keys below it"]
    problems: list[str] = []
    fields = hints(kind)  # type: ignore[arg-type]  # a class is hashable
    prefix = f"{path}." if path else ""
    problems += [_stranger(kind, str(name), path) for name in value if name not in fields]
    values: dict[str, Any] = {}
    for name, hint in fields.items():
        if name not in value:
            problems.append(f"`{prefix}{name}` is missing; it must be {requirement(hint, keys(kind).get(name))}")
            continue
        values[name], found = _convert(hint, keys(kind).get(name, Key("")), value[name], prefix + name)
        problems += found
    return (None, problems) if problems else (kind(**values), [])


def _stranger(kind: type, name: str, path: str) -> str:
    if not path:
        return unknown(name, list(paths(kind)))
    own = [own for own in hints(kind) if own != "name"]
    near = difflib.get_close_matches(name, own, n=1, cutoff=0.6)
    if near:
        return f"`{path}.{name}` is not a key; did you mean `{path}.{near[0]}`?"
    return f"`{path}.{name}` is not a key of {kind.__name__.lower()}, which has {', '.join(own) or 'none'}; take it out"


def _convert(hint: Any, meaning: Key, value: Any, path: str) -> tuple[Any, list[str]]:
    nested, options = variants(hint), alternatives(hint)
    if nested and not (value is None and type(None) in options):
        return _nested(nested, value, path)
    if isinstance(value, float) and float in options:
        # 1.0 is a share where 1 is a row.
        options = tuple(option for option in options if option is not int)
    for option in options if value != MISSING else ():
        fits, converted = _scalar(option, meaning, value)
        if fits:
            return converted, []
    return None, [f"`{path}` must be {requirement(hint, meaning)}, but is {shown(value)}{_hint(hint, value, path)}"]


def _nested(nested: dict[str, type], value: Any, path: str) -> tuple[Any, list[str]]:
    if "" in nested:
        return build(nested[""], value, path)
    if not isinstance(value, Mapping):
        return build(next(iter(nested.values())), value, path)
    name = value.get("name", MISSING)
    if not isinstance(name, str) or name not in nested:
        near = difflib.get_close_matches(str(name), list(nested), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return None, [f"`{path}.name` must be one of {', '.join(nested)}, but is {shown(name)}{hint}"]
    return build(nested[name], value, path)


def _scalar(option: Any, meaning: Key, value: Any) -> tuple[bool, Any]:  # noqa: PLR0911 - one line a type
    origin = get_origin(option)
    if option is type(None):
        return value is None, None
    if origin is Literal:
        return isinstance(value, str) and value in get_args(option), value
    if option is bool:
        return isinstance(value, bool), value
    if option is str:
        fits = isinstance(value, str) and (meaning.pattern is None or re.fullmatch(meaning.pattern, value) is not None)
        return fits, value
    if option in (int, float):
        return _number(option, meaning, value)
    if origin is tuple:
        return _sequence(get_args(option), meaning, value)
    if origin is dict:
        return _mapping(get_args(option), meaning, value)
    raise TypeError(f"the schema has a type that is not read: {option}")


def _number(option: Any, meaning: Key, value: Any) -> tuple[bool, Any]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False, None
    # Not math.isfinite, which an integer beyond every float makes raise; nan is within no limit.
    if not abs(value) <= (LARGEST_INT64 if option is int else sys.float_info.max):
        return False, None
    if option is int and value != int(value):
        return False, None
    return meaning.allows(value), option(value)


def _sequence(items: tuple[Any, ...], meaning: Key, value: Any) -> tuple[bool, Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False, None
    expected = [items[0]] * len(value) if items[-1] is Ellipsis else list(items)
    if len(expected) != len(value):
        return False, None
    converted = []
    for item, v in zip(expected, value, strict=True):
        fitting = [c for fits, c in (_scalar(o, meaning, v) for o in alternatives(item)) if fits]
        if not fitting:
            return False, None
        converted.append(fitting[0])
    return True, tuple(converted)


def _mapping(items: tuple[Any, ...], meaning: Key, value: Any) -> tuple[bool, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        return False, None
    converted = {k: _scalar(items[1], meaning, v) for k, v in value.items()}
    return all(fits for fits, _ in converted.values()), {k: v for k, (_, v) in converted.items()}


def requirement(hint: Any, meaning: Key | None = None) -> str:
    """What a field must be, in words: "an integer of at least 1, or null"."""
    meaning = meaning or Key("")
    words = [_word(option, meaning) for option in alternatives(hint) if option is not type(None)]
    words += ["null"] if type(None) in alternatives(hint) else []
    return " or ".join(dict.fromkeys(words))


def _word(option: Any, meaning: Key) -> str:
    origin = get_origin(option)
    limits = " and ".join(meaning.bounds())
    limits = f" {limits}" if limits else ""
    if origin is Literal:
        return "one of " + ", ".join(get_args(option))
    if origin is tuple:
        items = [a for a in get_args(option) if a is not Ellipsis]
        count = "" if get_args(option)[-1] is Ellipsis else f" of {len(items)}"
        return f"a list{count}, each {requirement(items[0], meaning)}"
    if origin is dict:
        return "names with a finite number each"
    if dataclasses.is_dataclass(option):
        return "a group of keys"
    if option is str and meaning.pattern:
        return f"a text that matches {meaning.pattern}"
    return {bool: "true or false", str: "a text", int: f"an integer{limits}", float: f"a finite number{limits}"}[option]


def _hint(hint: Any, value: Any, path: str) -> str:
    """What to do, where it can be told from the value."""
    options = alternatives(hint)
    choices = [c for option in options if get_origin(option) is Literal for c in get_args(option)]
    near = difflib.get_close_matches(str(value).lower(), choices, n=1, cutoff=0.5) if isinstance(value, str) else []
    if value == MISSING:
        return f"; give it with {path}=…"
    if near:
        return f"; did you mean {near[0]}?"
    if isinstance(value, bool) and (choices or str in options):
        return "; YAML reads yes, no, on and off as true and false: put it in quotes"
    if isinstance(value, (int, float)) and str in options:
        return "; put it in quotes"
    if isinstance(value, (int, float, str)) and any(get_origin(option) is tuple for option in options):
        return f"; write {path}=[{value}]"
    return ""


def shown(value: Any) -> str:
    """A value as the user would write it in YAML, cut where it is long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "missing" if value == MISSING else f"the text {cut(repr(value))}"
    if isinstance(value, int) and abs(value) > LARGEST_INT64:
        return "an integer of more than 64 bits"  # Python writes none of more than 4,300 digits
    return cut(str(value))


def cut(text: str) -> str:
    """At most 120 characters of a text."""
    return text if len(text) <= 120 else f"{text[:117]}…"
