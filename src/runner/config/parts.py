"""Declare the schema: the meaning and bounds of a key, and the parts that a group offers.

`introspection` reads these declarations, `validation` checks values against them, and `versions` completes older values.
"""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from runner.config.imports import Target

ALWAYS: Any = object()
"""Value of `Key.before` for a key that is as old as its group."""


@dataclass(frozen=True)
class Key:
    """Meaning of one field: a phrase, its unit, and its bounds. A bound of None is no bound."""

    meaning: str
    unit: str = ""
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    pattern: str | None = None
    """Regular expression that a string must match as a whole."""
    lane: bool = False
    """Whether trials that differ only in this value can be vmapped."""
    names: bool = False
    """Whether its texts name columns or parameters. Two spellings of a letter with an accent are then one name."""
    per_run: bool = False
    """Whether vmapped trials may differ in this value in any way because their program does not depend on it."""
    changes: Literal["answer", "placement", "recording"] = "answer"
    """Effect of the key: on the answer of a run, on the place where it is computed, or only on its records."""
    resumable: bool = False
    """Whether the key may be overridden when a run is resumed."""
    before: Any = ALWAYS
    """Value that every run had before the key existed, as in YAML. Older configurations are completed with it."""
    hashed: bool = False
    """Whether `config_hash` includes the key even while it equals `before`. Only keys older than this rule need it."""

    def bounds(self) -> str:
        """Return the bounds as text, such as "from 0 to 1" or "above 0 and below 10"; empty without bounds."""
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least} to {self.at_most}"
        limits = {"above": self.above, "at least": self.at_least, "below": self.below, "at most": self.at_most}
        text = " and ".join(f"{phrase} {limit}" for phrase, limit in limits.items() if limit is not None)
        return f"of {text}" if text.startswith("at ") else text

    def allows(self, number: float) -> bool:
        """Return whether a number is within the bounds."""
        return (
            (self.above is None or number > self.above)
            and (self.at_least is None or number >= self.at_least)
            and (self.below is None or number < self.below)
            and (self.at_most is None or number <= self.at_most)
        )


def key(meaning: str, **limits: Any) -> Any:
    """Return a dataclass field with this meaning. It has no default because its value is in `conf/`."""
    return field(metadata={"key": Key(meaning, **limits)})


def group(**flags: Any) -> Any:
    """Return a dataclass field that holds keys of its own. The flags of `Key` given here apply to all of them."""
    return field(metadata={"group": Key("", **flags)})


class Part:
    """One choice of a configuration group, such as a model: a dataclass that names its builder.

    A group is a direct subclass with a field `name`. Its choices are subclasses of the form
    `class Mlp(ModelConfig, name="mlp", builder="runner.models.mlp:build")`. Intermediate subclasses without a name hold
    the fields that several choices share.
    """

    choices: ClassVar[dict[str, type[Any]]]
    """Choices of a group by name."""
    offered: ClassVar[bool] = True
    """Whether lists of choices have it. One that only Python code can complete is in none."""
    builder: ClassVar[str]
    """Module and function, as "package.module:function". It is imported when the part is built."""

    def __init_subclass__(cls, *, name: str | None = None, builder: str | None = None, **binding: Any) -> None:
        super().__init_subclass__(**binding)
        if Part in cls.__bases__:
            cls.choices = {}
        if (name is None) != (builder is None):
            raise TypeError(f"{cls.__name__} must have both a name and a builder, or neither; add the other one")
        if name is None or builder is None:
            return
        if name in cls.choices:
            raise TypeError(f"{cls.__name__} must have a unique name, got {name!r} of {cls.choices[name].__name__}")
        cls.choices[name], cls.builder = cls, builder
        inherited = next(
            field.metadata["key"]
            for base in cls.__mro__[1:]
            if dataclasses.is_dataclass(base)
            for field in dataclasses.fields(base)
            if field.name == "name"
        )
        cls.__annotations__ = {"name": Literal[name], **cls.__annotations__}
        cls.name = key(inherited.meaning)  # type: ignore[attr-defined]  # the field of the dataclass it becomes

    def build(self, *arguments: Any) -> Any:
        """Return what the builder makes of this configuration and the arguments that its group defines."""
        return pkgutil.resolve_name(self.builder)(self, *arguments)

    @property
    def code(self) -> Target | None:
        """Code of the user's own that the part is built from; None for a part of this package."""
        return None

    def problems(self) -> Iterable[str]:
        """Return a sentence for each set of values that are valid by themselves but not together."""
        return ()
