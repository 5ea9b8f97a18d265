"""`python -m runner explain …`: where every value of a configuration was set, and what it means. torch is not imported.

`sources` finds what sets a value; here it is held together with the schema, and told.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.commands.arguments import Parser
from runner.commands.explain.sources import GROUPS, Setting, choices, history, merge, settings
from runner.config import introspection, overrides, validation
from runner.config.compose import Composed, compose
from runner.config.hydra_adapter import options
from runner.config.parts import Key
from runner.config.schema import Config
from runner.errors import ConfigError, InputError

USAGE = """\
python -m runner explain +experiment=NAME [key=value …] [KEY …]     every value of this run: where it was set, what it means
python -m runner explain resume=RUN_DIR [key=value …] [KEY …]       the same of a run that is gone on from
python -m runner explain rerun RUN_DIR [key=value …] [KEY …]        or of one that is done again

Nothing is run. KEY, such as optimizer or data.noise, shows that group or key alone.

options
  --config-dir DIR     your own groups and experiments
  --json               one JSON object: choices, values, notices
"""


@dataclass(frozen=True)
class Value:
    """A key of the configuration that is run: its value, all that set it, of which the last counts, and its meaning."""

    key: str
    value: Any
    settings: tuple[Setting, ...]
    meaning: str
    unit: str
    later: str | None
    """What the start of the run still makes of it."""

    @property
    def reference(self) -> str | None:
        """The text with ${…} that the value came from."""
        written = shown(self.settings[-1].value)
        return written if "${" in written else None


@dataclass(frozen=True)
class Explanation:
    """All values in the order of the schema; for each group what chose its option, the last setting the one that counts."""

    values: tuple[Value, ...]
    choices: dict[str, tuple[Setting, ...]]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Later:
    """A value that is settled when the run starts."""

    key: str
    when: Callable[[Config], bool]
    sentence: str


def _alone(config: Config) -> bool:
    return config.launch.processes == config.launch.nodes == 1


LATER = (
    Later(
        "device.name",
        lambda k: k.device.name == "auto",
        "an accelerator where torch finds one, else cpu; `python -m runner doctor` says which",
    ),
    Later(
        "device.threads",
        lambda k: k.device.threads is None and k.strategy.reduction == "exact",
        "1, so that the bits do not depend on the number of cores",
    ),
    Later("strategy.name", lambda k: k.strategy.name == "auto", "single on one process, ddp on more"),
    Later("strategy.name", lambda k: k.strategy.name == "ddp" and _alone(k), "single, unless torchrun starts more"),
    Later("strategy.name", lambda k: k.strategy.name == "dp", "single where fewer than two GPUs are visible"),
    Later("run_dir", lambda k: k.run_dir is None and k.resume is None, "a new directory runs/<name>/<stamp>"),
)


def command(words: list[str]) -> int:
    """Explain what the words ask for; exit code 0. Raises the errors that a run would."""
    parser = Parser("explain")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("words", nargs="*")
    given, rest = parser.parse_known_intermixed_args(words)
    asked, base = given.words + rest, None
    if asked[:1] == ["rerun"]:
        if len(asked) < 2:
            raise ConfigError("`rerun` must be followed by a run directory, but nothing follows; write rerun RUN_DIR")
        _, base, *asked = asked
    typed = [word for word in asked if "=" in word or word.startswith(("-", "~"))]
    found = explain(typed, given.config_dir, base, [word for word in asked if word not in typed])
    sys.stdout.write(f"{json.dumps(plain(found), ensure_ascii=False)}\n" if given.json else text(found))
    return 0


def explain(
    words: Sequence[str], config_dir: str | None = None, base: str | None = None, only: Sequence[str] = ()
) -> Explanation:
    """What set each value of the configuration of these words; `only` names the keys and groups to keep (none: all).

    Raises what `compose` raises, and `ConfigError` for a name in `only` that the configuration does not have.
    """
    strangers = _strangers(only, config_dir)
    try:
        composed = compose(words, config_dir, base)
    except InputError as error:
        if not strangers:
            raise
        raise ConfigError([*strangers, *error.problems]) from None
    run = composed.config.resume if base is None else base
    plan = overrides.read(words, options(config_dir))
    merged = merge(plan, config_dir)
    values = list(_values(composed, settings(composed, plan, merged, run), base))
    strangers = strangers or [
        _absent(name, composed.config) for name in only if not any(_within(v.key, name) for v in values)
    ]
    if strangers:
        raise ConfigError(strangers)
    kept = [v for v in values if not only or any(_within(v.key, name) for name in only)]
    shown_groups = {v.key.partition(".")[0] for v in kept}
    chosen = {
        group: found
        for group, found in choices(composed, plan, merged, run).items()
        if group in shown_groups or not (only or group in GROUPS)
    }
    return Explanation(tuple(kept), chosen, composed.notices)


def _within(key: str, name: str) -> bool:
    return f"{key}.".startswith(f"{name}.")


def _strangers(only: Sequence[str], config_dir: str | None) -> list[str]:
    """A sentence for each name that no configuration has."""
    known, found = list(introspection.paths(Config)), options(config_dir)
    return [
        f"`{name}` is not a key; did you mean +experiment={name}?"
        if name in found.get("experiment", {})
        else validation.unknown(name, known)
        for name in only
        if name not in known and not introspection.is_mapping(Config, name.rpartition(".")[0])
    ]


def _absent(name: str, config: Config) -> str:
    group = name.partition(".")[0]
    return f"`{name}` has no value here, where `{group}` is {getattr(config, group).name}; ask for `{group}` to see the keys that do"


def _values(composed: Composed, found: Sequence[Setting], base: str | None) -> Iterator[Value]:
    """Every key with its history."""
    config = composed.config
    again = f"rerun {base}" if base is not None else f"resume={config.resume}" if config.resume is not None else None
    for key, value, meaning in _leaves(config):
        own = list(history(key, value, found))
        if again is not None and own[-1].value != value and "${" not in shown(own[-1].value):
            # What of a run's own values is not kept, such as a strategy for another number of processes.
            own.append(Setting(key, value, again))
        later = next((rule.sentence for rule in LATER if rule.key == key and rule.when(config)), None)
        yield Value(key, value, tuple(own), meaning.meaning, meaning.unit, later)


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Key]]:
    """Dotted key, plain value and meaning of everything in a configuration; the entries of a mapping one by one."""
    for name, meaning in _fields(config).items():
        value = getattr(config, name)
        if meaning is None:
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, dict) and value:
            yield from ((f"{prefix}{name}.{entry}", number, meaning) for entry, number in value.items())
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value, meaning


def _fields(config: Any) -> dict[str, Key | None]:
    """Field → meaning, or None for a group, in the schema's order."""
    own = introspection.keys(type(config))
    return {field.name: own.get(field.name) for field in dataclasses.fields(config)}


def plain(found: Explanation) -> dict[str, Any]:
    """What JSON holds of an explanation: `set_by` is the setting that counts, `before` those that it replaced, first to last."""
    values = [
        {
            "key": v.key,
            "value": v.value,
            "set_by": v.settings[-1].plain(),
            "before": [setting.plain() for setting in v.settings[:-1]],
            "meaning": v.meaning,
            "unit": v.unit or None,
            "at_start": v.later,
        }
        for v in found.values
    ]
    choices = [
        {
            "group": group,
            "option": settings[-1].value,
            "set_by": settings[-1].plain(),
            "before": [setting.plain() for setting in settings[:-1]],
        }
        for group, settings in found.choices.items()
    ]
    return {"choices": choices, "values": values, "notices": list(found.notices)}


def text(found: Explanation) -> str:
    """An explanation for people: the run's own keys, then each group under the choice of its option, then the notices."""
    heads = {group: (f"{group}={settings[-1].value}", settings) for group, settings in found.choices.items()}
    rows = {v.key: (f"{v.key} = {shown(v.value)}", v) for v in found.values}
    width = min(max(len(words) for words, _ in [*heads.values(), *rows.values()]), 40)
    lines = [line for group in heads if group not in GROUPS for line in _head(*heads[group], width)]
    told = set()
    for key, (words, value) in rows.items():
        group = key.partition(".")[0]
        if group in heads and group not in told:
            told.add(group)
            lines += ["", *_head(*heads[group], width)]
        lines += _row(words, value, width)
    lines += [f"warning: {notice}" for notice in found.notices]
    return "\n".join(lines).lstrip("\n") + "\n"


def _head(words: str, settings: Sequence[Setting], width: int) -> list[str]:
    return [f"{words:<{width}}  {settings[-1].place}", *_before(settings[:-1])]


def _row(words: str, value: Value, width: int) -> list[str]:
    unit = f" [{value.unit}]" if value.unit else ""
    return [
        f"{words:<{width}}  {value.settings[-1].place}",
        f"    {value.meaning}{unit}",
        *([f"    written as {value.reference}"] if value.reference else []),
        *([f"    at the start of the run: {value.later}"] if value.later else []),
        *_before(value.settings[:-1]),
    ]


def _before(settings: Sequence[Setting]) -> list[str]:
    return [f"    before: {shown(setting.value)}, {setting.place}" for setting in reversed(settings)]


def shown(value: Any) -> str:
    """A value as it is written in YAML, or on the command line."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {shown(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    return str(value) or "''"
