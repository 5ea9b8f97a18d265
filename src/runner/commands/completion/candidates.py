"""What may stand at the end of a line of the shell. Verbs and options are those of the usage texts, keys and values those of the schema."""

from __future__ import annotations

import importlib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args, get_origin

from runner.commands import USAGE, VERBS
from runner.config import introspection
from runner.config.hydra_adapter import CONF, option_text, options
from runner.config.schema import Config, resumable_keys

PROGRAM = "runner"

_FOLDERS = ("resume", "run_dir", "model.init_from")
"""Keys whose value is a folder."""
_FILES = ("data.path", "data.valid_path", "data.test_path")


def candidates(line: str) -> list[str]:
    """Return what may replace the last word of a line, which ends at the cursor; empty where nothing is known.

    A candidate that is not complete ends with `=`, `.` or `/`. Raises `ConfigError` for a `--config-dir` that is none.
    """
    try:
        words = shlex.split(line)
    except ValueError:  # a quote is open
        return []
    words += [""] if line[-1:].isspace() else []
    program = next((place for place, word in enumerate(words) if os.path.basename(word) == PROGRAM), len(words))
    if program + 1 >= len(words):
        return []
    *before, word = words[program + 1 :]
    return [offer for offer in dict.fromkeys(_offers(before, word)) if offer.startswith(word)]


def _offers(before: Sequence[str], word: str) -> Iterator[str]:
    """Yield candidates for a word after these words, also some that begin otherwise."""
    head, usage, after = _position(before)
    keys = re.findall(r"\b[a-z]+\.\w+", usage.partition("\nkeys\n")[2])
    if any(argument.startswith("resume=") for argument in after):
        keys = list(resumable_keys())
    typed = _Typed(before, keys, of_run=bool(keys) or "rerun" in head.split())
    if before and (metavar := _metavar(before[-1], usage)):
        yield from _option_values(metavar, word, typed)
        return
    if word.startswith("-"):
        general = usage is USAGE
        yield from re.findall(r"(?<![\w-])--[a-z-]*[a-z]", usage.partition("\noptions\n")[2] if general else usage)
        yield from () if general else ("--help",)
        return
    for form in (line[len(head) + 1 :] for line in usage.splitlines() if line.startswith(f"{head} ")):
        names = [name for name in form.partition(" ")[0].split("|") if re.fullmatch("[a-z][a-z-]*", name)]
        places: Any = re.match(r"(?:[A-Z_]+ )*", form)
        if names:
            yield from names if not after else ()
        elif len(after) < len(places[0].split()):
            yield from _places(word, folders_only=True)
        elif "key=value" in form:
            yield from typed.overrides(word)


def _position(before: Sequence[str]) -> tuple[str, str, list[str]]:
    """Return the beginning of the lines that say what may follow these words, their usage text, and the words after it."""
    head, usage = f"python -m {PROGRAM}", USAGE
    after: list[str] = []
    for previous, word in zip(["", *before], before, strict=False):
        if word.startswith("-") or _metavar(previous, usage):
            continue
        if after or not re.search(rf"^{re.escape(head)} (?:\S+\|)?{re.escape(word)}[ |]", usage, re.MULTILINE):
            after.append(word)
            continue
        if usage is USAGE and word in VERBS:
            usage = importlib.import_module(f"runner.commands.{word}").USAGE
        head = f"{head} {word}"
    return head, usage, after


def _metavar(option: str, usage: str) -> str:
    """Return the word that stands for the value of an option in a usage text; empty for an option without a value."""
    found = re.search(rf"(?<!\S){re.escape(option)} (\S+)", usage) if option.startswith("--") else None
    return found[1] if found else ""


def _option_values(metavar: str, word: str, typed: _Typed) -> Iterator[str]:
    """Yield values of an option from the word that stands for them in the usage text, such as FILE or safetensors|onnx."""
    if metavar in ("FILE", "PATH", "DIR", "FOLDER") or "." in metavar:
        yield from _places(word, folders_only=metavar in ("DIR", "FOLDER"))
    elif metavar.lower() in typed.groups:  # DEVICE
        yield from typed.groups[metavar.lower()]
    elif metavar.islower():
        yield from metavar.split("|")


def _places(text: str, *, folders_only: bool) -> Iterator[str]:
    """Yield folders, and files as well, whose path begins like a text."""
    folder, slash, start = text.rpartition("/")
    try:
        entries = sorted(os.scandir(os.path.expanduser(f"{folder}{slash}") or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") and not start.startswith("."):
            continue
        if entry.is_dir():
            yield f"{folder}{slash}{entry.name}/"
        elif not folders_only:
            yield f"{folder}{slash}{entry.name}"


@dataclass(frozen=True)
class _Typed:
    """The arguments before the word to complete."""

    words: Sequence[str]
    allowed: Sequence[str]
    """Keys that may be given here; empty for all."""
    of_run: bool
    """Whether the options of the groups are those of a run, which is not read for this."""

    @cached_property
    def groups(self) -> dict[str, dict[str, str]]:
        """Group → option → description."""
        return options(self._config_dir)

    @cached_property
    def _config_dir(self) -> str | None:
        values = [after for name, after in zip(self.words, self.words[1:], strict=False) if name == "--config-dir"]
        values += [word.partition("=")[2] for word in self.words if word.startswith("--config-dir=")]
        return values[-1] if values else None

    def overrides(self, word: str) -> Iterator[str]:
        """Yield `key=` for the keys of a level, or `key=value` once a word has its `=`."""
        name, equals, value = word.partition("=")
        if equals:
            yield from (f"{name}={found}" for found in self._values(name.removeprefix("+"), value))
            return
        parent, dot, _ = name.rpartition(".")
        offers = [f"{parent}{dot}{key}" for key in self._keys(parent)]
        if not parent:
            known = introspection.hints(Config)
            several = [group for group, choices in self.groups.items() if len(choices) > 1 or group not in known]
            offers += [f"{'' if group in known else '+'}{group}=" for group in several]
        yield from filter(self._is_allowed, offers)

    def _is_allowed(self, offer: str) -> bool:
        """Return whether a key or group is one that may be given, is within one, or, with a dot at its end, holds one."""
        holds = offer.endswith(".") and any(key.startswith(offer) for key in self.allowed)
        return not self.allowed or holds or introspection.is_within(offer.rstrip("=."), self.allowed)

    def _keys(self, parent: str) -> Iterator[str]:
        """Yield the keys of a group, with `.` after those that hold keys, and with `=` after the others."""
        for kind in self._kinds(parent):
            for name, hint in introspection.hints(kind).items():
                if name != "name" or kind is Config:
                    mapping = any(get_origin(option) is dict for option in introspection.alternatives(hint))
                    holds = mapping or introspection.variants(hint)
                    yield f"{name}{'.' if holds else '='}"

    def _values(self, name: str, text: str) -> Iterator[str]:
        """Yield values that a key or a group may have. After a comma, they continue those of a sweep."""
        parent, _, last = name.rpartition(".")
        if name in _FOLDERS or name in _FILES:
            yield from _places(text, folders_only=name in _FOLDERS)
            return
        earlier, comma, _ = text.rpartition(",")
        found = list(self.groups.get(name, ()))
        for kind in self._kinds(parent) if not found else ():
            found += _literals(introspection.hints(kind).get(last))
        yield from (f"{earlier}{comma}{value}" for value in found)

    def _kinds(self, parent: str) -> list[type]:
        """Return the classes of the schema that a group of keys may have, with the options that were chosen."""
        kinds: list[type] = [Config]
        for depth, step in enumerate(parent.split(".") if parent else ()):
            variants = [introspection.variants(introspection.hints(kind).get(step)) for kind in kinds]
            chosen = self._chosen(step) if depth == 0 and not self.of_run else set()
            kinds = [kind for of_kind in variants for name, kind in of_kind.items() if name in chosen] or [
                kind for of_kind in variants for kind in of_kind.values()
            ]
        return list(dict.fromkeys(kinds))

    def _chosen(self, group: str) -> set[str]:
        """Return the names of a group's options: those of the line, else that of the experiment, else that of every run."""
        texts = [option_text("experiment", name, self._config_dir) for name in self._given("experiment")]
        texts.append((CONF / "config.yaml").read_text(encoding="utf-8"))
        defaults = (_defaults(text).get(group) for text in texts)
        chosen = self._given(group) or [next((option for option in defaults if option is not None), "")]
        return {_loaded(option_text(group, option, self._config_dir)).get("name", option) for option in chosen}

    def _given(self, group: str) -> list[str]:
        values = [
            value for key, _, value in (word.partition("=") for word in self.words) if key.removeprefix("+") == group
        ]
        return values[-1].split(",") if values else []


def _literals(hint: Any) -> Iterator[str]:
    """Yield the values of a type that can be listed."""
    for option in introspection.alternatives(hint):
        if get_origin(option) is Literal:
            yield from get_args(option)
        elif option is bool:
            yield from ("true", "false")
        elif option is type(None):
            yield "null"


def _defaults(text: str) -> dict[str, str]:
    """Return group → option of the defaults list in a file."""
    entries = _loaded(text).get("defaults")
    pairs = [pair for entry in entries or () if isinstance(entry, dict) for pair in entry.items()]
    return {str(group).removeprefix("override ").strip("/ "): str(option) for group, option in pairs}


def _loaded(text: str) -> dict[Any, Any]:
    """Return the mapping in the text of a YAML file; empty for one that is none."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return value if isinstance(value, dict) else {}
