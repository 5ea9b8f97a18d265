"""Read the arguments of the command line: which option each group gets, and which value each key gets.

Nothing is composed here. Hydra stops at the first key that it does not know and advises to add it with `+`. Therefore every
key is checked against the schema first, and all problems are found at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args, get_origin

from runner.config import introspection, validation
from runner.config.documents import MAX_DEPTH, MAX_REFERENCES, depth, reference_depth
from runner.config.schema import Config

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

Groups = Mapping[str, Mapping[str, str]]
"""Group → option → its one-line description."""

_LONG_LIST = re.compile(r"\[([^][(){}'\"\\$,]*,){100,}[^][(){}'\"\\$,]*\]")
"""A flat list of many items, none of which has a comma in it."""

_CLASS = re.compile(r"(\w+(?:\.\w+)*)(?::|\.(?=[A-Z]))(\w+)")
"""Class of a module, as `hydra.utils.instantiate` or this program would be given it."""

_DEVICE_ALIASES = {"gpu": "auto", "hip": "rocm"}
"""Common names of devices → their option."""


@dataclass
class Plan:
    """Requested options and values, with the problems and notices about them."""

    groups: dict[str, str] = field(default_factory=dict)
    """Group → option."""
    values: dict[str, Any] = field(default_factory=dict)
    """Dotted key → plain value, in the order in which they apply."""
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    unresolved: set[str] = field(default_factory=set)
    """Groups whose requested option does not exist. Their keys cannot be checked."""
    dependent: set[str] = field(default_factory=set)
    """Keys that refer to a key without a value, which is reported there. They are known after composition."""
    saved: Mapping[str, Any] | None = None
    """Values of the run that is resumed or repeated; None for a new run. They are known after composition."""
    has_references: bool = False
    """Whether a value is a reference to another one, ${…}. It is known after composition."""

    @property
    def names(self) -> list[str]:
        """Every group and key that was set."""
        return [*self.groups, *self.values]


def read(arguments: Sequence[str], groups: Groups) -> Plan:
    """Return the plan of `key=value` arguments. Its `problems` list everything that is wrong with them."""
    plan = Plan()
    known = list(introspection.paths(Config))
    for argument in arguments:
        override = parse(argument, [*known, *groups], groups, plan)
        if override is not None:
            _add(override, groups, known, plan)
    _replace_length(plan)
    return plan


def quoted(text: str) -> str:
    """Return any text as a quoted string of Hydra's grammar."""
    from hydra.core.override_parser.types import Quote, QuotedString

    value: str = QuotedString(text, Quote.single).with_quotes()
    return value


def key_of(argument: str) -> str:
    """Return the key or group that an argument sets."""
    return argument.partition("=")[0].lstrip("+")


def values_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the value of each key or group of arguments that are known to be valid."""
    values: dict[str, Any] = {}
    for argument in arguments:
        override = parse(argument, [], {}, Plan())
        if override is not None:
            value = override.value()
            values[override.key_or_group] = {str(k): v for k, v in value.items()} if isinstance(value, dict) else value
    return values


def _replace_length(plan: Plan) -> None:
    """Set `train.epochs` to null if `train.steps` is given, and the other way round."""
    typed = [name for name in ("train.steps", "train.epochs") if plan.values.get(name) is not None]
    if len(typed) == 2:
        plan.problems.append(
            "`train.steps` and `train.epochs` must not both be given, since one replaces the other; remove one"
        )
    if typed:
        plan.values["train.epochs" if typed[0] == "train.steps" else "train.steps"] = None


def parse(argument: str, known: Sequence[str], groups: Groups, plan: Plan) -> Override | None:
    """Return one argument as parsed by Hydra. If it cannot be parsed, add the problem to the plan and return None."""
    from hydra.errors import HydraException

    name, _, text = argument.partition("=")
    problem = _malformed(argument, groups) or _nested(name.lstrip("+"), text)
    if problem is None:
        try:
            return _parse_list(argument) if _LONG_LIST.fullmatch(text) else parsed(argument)
        except (HydraException, ValueError, RecursionError):  # ValueError: an integer of thousands of digits
            problem = _unreadable(name.lstrip("+"), text, known)
        # Hydra's grammar has no nested references, but OmegaConf resolves them.
        if _is_string(name.lstrip("+")) or (text.startswith("${") and name.lstrip("+") in known):
            return parsed(f"{name}={quoted(text)}")
    plan.problems.append(problem)
    return None


def parsed(argument: str, config_loader: Any = None) -> Override:
    """Return an argument as Hydra parses it, with letters of every alphabet. Raises `HydraException`.

    The loader is needed for the values of a `glob(…)` only.
    Hydra's grammar has ASCII letters only, outside of quotes: the others are written as `_u3b1u_` for it.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    ascii_only = re.sub(r"[^\x00-\x7f]", lambda match: f"_u{ord(match[0]):x}u_", argument)
    override = OverridesParser.create(config_loader=config_loader).parse_override(ascii_only)
    override.config_loader = config_loader  # Hydra sets it only where it parses several
    if ascii_only == argument:
        return override
    key, value = _restored(override.key_or_group), _restored(override._value)
    return dataclasses.replace(override, key_or_group=key, _value=value, input_line=argument)


def _restored(value: Any) -> Any:
    """Return a parsed value with its letters that are not ASCII."""
    if isinstance(value, str):
        return re.sub(r"_u([0-9a-f]+)u_", lambda match: chr(int(match[1], 16)), value)
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if isinstance(value, dict):
        return {_restored(name): _restored(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # a string in quotes, or a choice of values
        texts = {name: _restored(item) for name, item in vars(value).items() if isinstance(item, (str, list))}
        return dataclasses.replace(value, **texts)
    return value


def _parse_list(argument: str) -> Override:
    """Parse a list in pieces: the time of Hydra's parser grows with the square of the number of items."""
    name, _, text = argument.partition("=")
    items = text[1:-1].split(",")
    pieces = [",".join(items[first : first + 100]) for first in range(0, len(items), 100)]
    overrides = [parsed(f"{name}=[{piece}]") for piece in pieces]
    values = [item for override in overrides for item in override._value]  # type: ignore[union-attr]  # lists
    return dataclasses.replace(overrides[0], _value=values, input_line=argument)


def _malformed(argument: str, groups: Groups) -> str | None:
    """Return the message for an argument that does not have the form key=value, or None if it has."""
    if argument.startswith("-"):
        example = argument.lstrip("-") or "seed"
        return f"`{argument}` is not an option; write values as key=value, such as {example}{'' if '=' in argument else '=…'}"
    if argument.startswith("~"):
        return f"`{argument}` deletes a key, but every key must have a value; set a value instead"
    name, equals, _ = argument.partition("=")
    if equals and name.strip("+"):
        return None
    key, colon, value = argument.partition(":")
    hint = f"write {key}={value}" if colon else "see --help"
    if argument in groups.get("experiment", {}):
        hint = f"did you mean +experiment={argument}?"
    return f"`{argument}` must have the form key=value, but has no {'key' if equals else '`=`'}; {hint}"


def _nested(name: str, text: str) -> str | None:
    """Return the message for a value with too many levels of brackets or references, or None."""
    levels, references = depth(text, "[{(", "]})"), reference_depth(text)
    if references > MAX_REFERENCES:
        return f"`{name}` must nest at most {MAX_REFERENCES} references ${{…}}, got {references}; use fewer"
    if levels > MAX_DEPTH:
        return f"`{name}` must have at most {MAX_DEPTH} levels of brackets, got {levels}; use fewer"
    return None


def _unreadable(name: str, text: str, known: Sequence[str]) -> str:
    """Return the message for an argument that Hydra's grammar does not accept."""
    if name not in known:
        return validation.unknown(name, known)
    return f"`{name}` has a value that cannot be read, {validation.cut(text)}; {in_quotes(name, text)}"


def in_quotes(name: str, text: str) -> str:
    """Return the remedy for a value that cannot be read, or that is read as several values."""
    if text.startswith(("{", "[")):
        return f'put the whole argument in quotes for the shell: "{name}={text} …"'
    if _is_string(name):
        return f"put a string with commas in two pairs of quotes, one for the shell: \"{name}='{text}'\""
    return f"write {name}=VALUE"


def _or_sweep(name: str) -> str:
    return "" if _is_string(name) else ", or add -m for a sweep"


def _is_string(name: str) -> bool:
    mappings = introspection.field_types(Config, name.rpartition(".")[0])
    entries = [get_args(hint)[1] for hint in mappings if get_origin(hint) is dict]
    return any(str in introspection.alternatives(hint) for hint in (*introspection.field_types(Config, name), *entries))


def _add(override: Override, groups: Groups, known: Sequence[str], plan: Plan) -> None:
    """Add an override to the plan: its option, its value, or the problem with it."""
    name, text = override.key_or_group, (override.input_line or "").partition("=")[2]
    parent, _, last = name.rpartition(".")
    if override.package is not None:
        plan.problems.append(f"`{name}@{override.package}` moves a group, but groups cannot be moved; write {name}=…")
    elif override.is_sweep_override():
        plan.problems.append(
            f"`{name}` must be one value, got {validation.cut(text)}; {in_quotes(name, text)}{_or_sweep(name)}"
        )
    elif name in groups:
        _set_option(name, override.value(), groups[name], plan)
    elif name.startswith(("hydra.", "hydra/")):
        plan.problems.append(
            f"`{name}` has no effect, because Hydra only composes the configuration; use run_dir=… to place a run, --config-dir to add groups"
        )
    elif name in known and introspection.is_group(Config, name):
        plan.problems.append(f"`{name}` is a group of keys, got {text}; set its keys one by one: {name}.KEY=…")
    elif last == "name" and parent in groups:
        plan.problems.append(
            f"`{name}` cannot be set by itself, because other keys depend on it; write {parent}={text}"
        )
    elif name in known or introspection.is_mapping(Config, parent):
        _set_value(name, override.value(), text, plan)
    else:
        plan.problems.append(validation.unknown(name, [*known, *groups]))


def _set_value(name: str, value: Any, text: str, plan: Plan) -> None:
    if name in plan.values:
        del plan.values[name]
        plan.notices.append(f"`{name}` is given twice; the last one counts: {text}")
    if isinstance(value, dict):
        value = {str(k): v for k, v in value.items()}
    # A string key keeps the text that Hydra's grammar reads as a number, such as a column 2024 or a folder 007.
    plan.values[name] = text if isinstance(value, (bool, int, float)) and _is_string(name) else value


def _set_option(group: str, choice: Any, options: Mapping[str, str], plan: Plan) -> None:
    if group in plan.groups:
        plan.notices.append(f"`{group}` is given twice; the last one counts: {choice}")
    if isinstance(choice, str) and choice in options:
        plan.groups[group] = choice
        return
    plan.unresolved.add(group)
    typed = choice.lower() if isinstance(choice, str) else ""
    choices = introspection.offered(Config, group, options)
    near = difflib.get_close_matches(typed, choices, n=1, cutoff=0.6)
    alias = _DEVICE_ALIASES.get(typed) if group == "device" else None
    hint = f"; did you mean {alias or near[0]}?" if alias or near else ""
    if isinstance(choice, dict):
        hint = f"; set its keys one by one: {group}.KEY=…"
    path = choice.get("_target_") if isinstance(choice, dict) else choice
    if isinstance(path, str) and (named := _CLASS.fullmatch(path)):
        instead = validation.own_code(group, list(introspection.paths(Config)), f"{named[1]}:{named[2]}")
        hint = f"; {instead}" if instead else hint
    plan.problems.append(f"`{group}` must be one of {', '.join(choices)}, got {validation.shown(choice)}{hint}")
