"""The words of the command line, sorted: which option a group takes, and which value a key. Nothing is composed here.

Hydra stops at the first key that it does not know and advises to add it with `+`. So every key is held against the
schema first: what is wrong is found here, all of it at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner.config import validation
from runner.config.schema import Config

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

Groups = Mapping[str, Mapping[str, str]]
"""Group → option → its sentence."""

MEANT = {"gpu": "auto", "hip": "rocm"}
"""What people call a device that has another name here."""


@dataclass
class Plan:
    """What was asked for, what is wrong with it, and what the user should hear about it.

    `undecided` are the groups whose option does not exist, so that their keys cannot be judged. `refers` says, once it is
    composed, whether a value is a reference to another.
    """

    groups: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    undecided: set[str] = field(default_factory=set)
    refers: bool = False

    @property
    def names(self) -> list[str]:
        """Every group and key that was given."""
        return [*self.groups, *self.values]


def read(words: Sequence[str], groups: Groups) -> Plan:
    """The plan of `key=value` words; the groups and their options are those of `groups`."""
    plan = Plan()
    known = list(validation.paths(Config))
    for word in words:
        override = parse(word, [*known, *groups], groups, plan)
        if override is not None:
            _sort(override, groups, known, plan)
    _one_length(plan)
    return plan


def quoted(text: str) -> str:
    """A text as a value of Hydra's grammar, whatever is in it."""
    from hydra.core.override_parser.types import Quote, QuotedString

    value: str = QuotedString(text, Quote.single).with_quotes()
    return value


def key_of(word: str) -> str:
    """The key, or group, that a word gives a value."""
    return word.partition("=")[0].lstrip("+")


def values_of(words: Sequence[str]) -> dict[str, Any]:
    """Key, or group, → value of words that are known to be right."""
    found: dict[str, Any] = {}
    for word in words:
        override = parse(word, [], {}, Plan())
        if override is not None:
            value = override.value()
            found[override.key_or_group] = {str(k): v for k, v in value.items()} if isinstance(value, dict) else value
    return found


def _one_length(plan: Plan) -> None:
    """`train.steps` and `train.epochs`: the one that is typed replaces the other."""
    typed = [name for name in ("train.steps", "train.epochs") if plan.values.get(name) is not None]
    if len(typed) == 2:
        plan.problems.append("`train.steps` and `train.epochs` are both given; one replaces the other: leave one out")
    if typed:
        plan.values["train.epochs" if typed[0] == "train.steps" else "train.steps"] = None


def parse(word: str, known: Sequence[str], groups: Groups, plan: Plan) -> Override | None:
    """One word as Hydra reads it; None, with the problem in the plan, where it cannot be read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    name, _, text = word.partition("=")
    problem = _malformed(word, groups)
    if problem is None:
        try:
            return OverridesParser.create().parse_override(word)
        except (HydraException, ValueError):  # ValueError: an integer of thousands of digits
            problem = _unreadable(name.lstrip("+"), text, known)
        # A reference within a reference is beyond Hydra's grammar, not beyond OmegaConf's.
        if _is_text(name.lstrip("+")) or (text.startswith("${") and name.lstrip("+") in known):
            return OverridesParser.create().parse_override(f"{name}={quoted(text)}")
    plan.problems.append(problem)
    return None


def _malformed(word: str, groups: Groups) -> str | None:
    """The sentence for a word that is no key=value at all."""
    if word.startswith("-"):
        example = word.lstrip("-") or "seed"
        return (
            f"`{word}` is not an option; values are given as key=value, such as {example}{'' if '=' in word else '=…'}"
        )
    if word.startswith("~"):
        return f"`{word}` deletes a key, but every key must have a value; give it one"
    name, equals, _ = word.partition("=")
    if equals and name.strip("+"):
        return None
    key, colon, value = word.partition(":")
    hint = f"write {key}={value}" if colon else "see --help"
    if word in groups.get("experiment", {}):
        hint = f"did you mean +experiment={word}?"
    return f"`{word}` must have the form key=value, but has no {'key' if equals else '`=`'}; {hint}"


def _unreadable(name: str, text: str, known: Sequence[str]) -> str:
    """The sentence for a word that Hydra's grammar does not read."""
    if name not in known:
        return validation.unknown(name, known)
    return f"`{name}` has a value that cannot be read, {validation.cut(text)}; {in_quotes(name, text)}"


def in_quotes(name: str, text: str) -> str:
    """What to write instead of a value that cannot be read, or is read as several."""
    if text.startswith(("{", "[")):
        return f'put the whole word in quotes for the shell: "{name}={text} …"'
    if _is_text(name):
        return f"put a text with commas in quotes, for the shell and for itself: \"{name}='{text}'\""
    return f"write {name}=VALUE"


def _or_sweep(name: str) -> str:
    return "" if _is_text(name) else ", or add -m for a sweep"


def _is_text(name: str) -> bool:
    return any(str in validation.alternatives(hint) for hint in validation.field_types(Config, name))


def _sort(override: Override, groups: Groups, known: Sequence[str], plan: Plan) -> None:
    name, text = override.key_or_group, (override.input_line or "").partition("=")[2]
    parent, _, last = name.rpartition(".")
    if override.package is not None:
        plan.problems.append(
            f"`{name}@{override.package}` moves a group, but every group has one place; write {name}=…"
        )
    elif override.is_sweep_override():
        plan.problems.append(
            f"`{name}` must be one value, but is {validation.cut(text)}; {in_quotes(name, text)}{_or_sweep(name)}"
        )
    elif name in groups:
        _choose(name, override.value(), groups[name], plan)
    elif name.startswith(("hydra.", "hydra/")):
        plan.problems.append(
            f"`{name}` does nothing, since Hydra only composes here; run_dir=… moves a run, --config-dir adds groups"
        )
    elif name in known and validation.is_group(Config, name):
        plan.problems.append(f"`{name}` is a group of keys, but is given {text}; give them one by one: {name}.KEY=…")
    elif last == "name" and parent in groups:
        plan.problems.append(f"`{name}` is not given by itself, since other keys go with it; write {parent}={text}")
    elif name in known or validation.is_mapping(Config, parent):
        _set(name, override.value(), text, plan)
    else:
        plan.problems.append(validation.unknown(name, [*known, *groups]))


def _set(name: str, value: Any, text: str, plan: Plan) -> None:
    if name in plan.values:
        del plan.values[name]
        plan.notices.append(f"`{name}` is given twice; the last one counts: {text}")
    if isinstance(value, dict):
        value = {str(k): v for k, v in value.items()}
    # What Hydra's grammar takes for a number is still a text where a text must be: a column 2024, a folder 007.
    plan.values[name] = text if isinstance(value, (bool, int, float)) and _is_text(name) else value


def _choose(group: str, choice: Any, options: Mapping[str, str], plan: Plan) -> None:
    if group in plan.groups:
        plan.notices.append(f"`{group}` is given twice; the last one counts: {choice}")
    if isinstance(choice, str) and choice in options:
        plan.groups[group] = choice
        return
    plan.undecided.add(group)
    typed = choice.lower() if isinstance(choice, str) else ""
    near = difflib.get_close_matches(typed, list(options), n=1, cutoff=0.6)
    meant = MEANT.get(typed) if group == "device" else None
    hint = f"; did you mean {meant or near[0]}?" if meant or near else ""
    if isinstance(choice, dict):
        hint = f"; give its keys one by one: {group}.KEY=…"
    plan.problems.append(f"`{group}` must be one of {', '.join(options)}, but is {validation.shown(choice)}{hint}")
