"""The search space, written as Hydra writes it on the command line: `optimizer.lr=tag(log, interval(1e-5, 1e-1))`.

Nothing here knows Optuna: a dimension asks whatever has Optuna's `suggest_…` methods, and can tell its values itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from runner.config import introspection, validation
from runner.config.overrides import quoted
from runner.config.schema import Config

if TYPE_CHECKING:
    from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

Value: TypeAlias = int | float | str
FORMS = "choice(a,b), range(1,10), interval(0,1) or tag(log, interval(1e-5,1e-1))"
"""How a sweep can be written."""

_REORDERING = re.compile(r"(shuffle|sort)\(")
_SWEEPING = re.compile(r"(tag|choice|range|interval|glob|shuffle|sort)\(")


class Asked(Protocol):
    """What gives values: `optuna.trial.Trial` does."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number from low to high."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """An integer from low to high."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """One of the choices."""


@dataclass(frozen=True)
class Interval:
    """Every number from low to high, both included; evenly in the logarithm with `log`."""

    low: float
    high: float
    log: bool = False

    def suggest(self, asked: Asked, key: str) -> Value:
        """A value for `key`."""
        return asked.suggest_float(key, self.low, self.high, log=self.log)

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values furthest apart."""
        return self.low, self.high


@dataclass(frozen=True)
class Range:
    """low, low + step, … up to high, which is one of them; all integers, or all floats."""

    low: int | float
    high: int | float
    step: int | float = 1
    log: bool = False

    def suggest(self, asked: Asked, key: str) -> Value:
        """A value for `key`."""
        if isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int):
            return asked.suggest_int(key, self.low, self.high, step=self.step, log=self.log)
        return asked.suggest_float(key, self.low, self.high, step=self.step)

    @property
    def values(self) -> tuple[Value, ...]:
        """All of them, in order."""
        kind = type(self.low)
        count = int((_decimal(self.high) - _decimal(self.low)) / _decimal(self.step)) + 1
        return tuple(kind(_decimal(self.low) + k * _decimal(self.step)) for k in range(count))

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values furthest apart."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of several values, each as the text that Hydra reads as that value."""

    values: tuple[str, ...]

    def suggest(self, asked: Asked, key: str) -> Value:
        """A value for `key`."""
        return str(asked.suggest_categorical(key, self.values))

    @property
    def ends(self) -> tuple[Value, ...]:
        """All of them: none lies between the others."""
        return self.values


Dimension: TypeAlias = Interval | Range | Choice


@dataclass(frozen=True)
class Space:
    """What differs between the trials, by key, and the words that all of them share."""

    fixed: tuple[str, ...]
    dimensions: Mapping[str, Dimension]

    def suggest(self, asked: Asked) -> dict[str, Value]:
        """A value for every key."""
        return {key: dimension.suggest(asked, key) for key, dimension in self.dimensions.items()}

    def words(self, values: Mapping[str, Value]) -> list[str]:
        """The words of one trial."""
        return [*self.fixed, *(f"{key}={value}" for key, value in values.items())]

    @property
    def endless(self) -> list[str]:
        """The keys whose values cannot be counted."""
        return [key for key, dimension in self.dimensions.items() if isinstance(dimension, Interval)]

    @property
    def numeric(self) -> list[str]:
        """The keys whose values are numbers with an order."""
        return [key for key, dimension in self.dimensions.items() if not isinstance(dimension, Choice)]

    @cached_property
    def grid(self) -> list[dict[str, Value]]:
        """Every combination of values, the last key changing fastest; there must be no `endless` key."""
        values = [dimension.values for dimension in self.dimensions.values() if not isinstance(dimension, Interval)]
        return [dict(zip(self.dimensions, point, strict=True)) for point in product(*values)]

    def probes(self) -> Iterator[list[str]]:
        """The words of a few trials in which the ends of every dimension occur: what is wrong shows before the start."""
        ends = {key: dimension.ends for key, dimension in self.dimensions.items()}
        for k in range(max(map(len, ends.values()), default=0)):
            yield self.words({key: values[k % len(values)] for key, values in ends.items()})


def read(words: Sequence[str]) -> tuple[Space, list[str]]:
    """The space that the words span, and a sentence for each word that does not fit one."""
    fixed: list[str] = []
    dimensions: dict[str, Dimension] = {}
    problems: list[str] = []
    for word in words:
        override = _parsed(word, problems)
        if override is None or not override.is_sweep_override():
            fixed.append(word)
            continue
        key = override.get_key_element()
        if key in dimensions:
            problems.append(f"`{key}` must be swept once, but is given twice; leave one out")
        dimension, problem = _dimension(override)
        if dimension is not None:
            dimensions[key] = dimension
        problems += [problem] if problem else []
    names = {word.partition("=")[0].lstrip("+") for word in fixed}
    problems += [
        f"`{key}` must be fixed or swept, but is both; leave one out" for key in dimensions if key.lstrip("+") in names
    ]
    return Space(tuple(fixed), dimensions), problems


def _parsed(word: str, problems: list[str]) -> Override | None:
    """The word as Hydra reads it; None where it cannot, such as a formula, which is then one value for all trials."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, ValueError) as error:
        name, _, text = word.partition("=")
        if _SWEEPING.match(text):
            reason = str(error).splitlines()[0].rpartition("': ")[2]
            problems.append(
                f"`{name}` must be written as Hydra writes a sweep, but {validation.cut(text)} is not ({reason}); write {FORMS}"
            )
        return None


def _dimension(override: Override) -> tuple[Dimension | None, str | None]:
    """The dimension of a swept key, or the sentence on why there is none."""
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep, Sweep

    sweep: Any = override.value()
    tags = sweep.tags if isinstance(sweep, Sweep) else set()
    dimension: Dimension | str = "choice, range or interval"
    if _REORDERING.match(override.get_value_string()) or getattr(sweep, "shuffle", False):
        dimension = "without shuffle and sort, since the sampler chooses the order"
    elif tags - {"log"} or (tags and isinstance(sweep, ChoiceSweep)):
        dimension = "without a tag, or an interval or range with the tag log"
    elif isinstance(sweep, ChoiceSweep):
        dimension = Choice(tuple(dict.fromkeys(map(as_text, sweep.list))))
    elif isinstance(sweep, RangeSweep):
        dimension = _range(sweep, log=bool(tags))
    elif isinstance(sweep, IntervalSweep):
        dimension = _interval(override, sweep, log=bool(tags))
    if isinstance(dimension, str):
        name, text = override.get_key_element(), validation.cut(override.get_value_string())
        return None, f"`{name}` must be {dimension}, but is {text}; write {FORMS}"
    return dimension, None


def _range(sweep: RangeSweep, log: bool) -> Range | str:
    """Hydra's range, which leaves `stop` out, in rising order; or what it must be instead."""
    assert sweep.start is not None
    assert sweep.stop is not None
    numbers = (sweep.start, sweep.stop, sweep.step)
    if not all(math.isfinite(number) for number in numbers) or sweep.step == 0:
        return "a range of finite numbers with a step that is not 0"
    kind = int if all(isinstance(number, int) for number in numbers) else float
    start, stop, step = (_decimal(number) for number in numbers)
    count = int(((stop - start) / step).to_integral_value(ROUND_CEILING))
    if count < 1:
        return "a range with values in it"
    low, high = sorted((start, start + (count - 1) * step))
    if log and (kind is float or abs(step) != 1 or low < 1):
        return "a range of integers from 1 on with step 1 where it is tagged log"
    return Range(kind(low), kind(high), kind(abs(step)), log)


def _interval(override: Override, sweep: IntervalSweep, log: bool) -> Interval | Range | str:
    """Of integers where the key takes only these, or takes both and both ends are written so; or what it must be instead."""
    assert sweep.start is not None
    assert sweep.end is not None
    low, high = sweep.start, sweep.end
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return "an interval from a smaller to a larger finite number"
    if log and low <= 0:
        return "an interval above 0 where it is tagged log"
    kinds = _kinds(override.key_or_group)
    integral = low == int(low) and high == int(high)
    if kinds == {int} and not integral:
        return "an interval of integers"
    written = integral and not re.search(r"\d\.|\.\d|\de", override.get_value_string(), re.IGNORECASE)
    if kinds == {int} or (written and kinds != {float}):
        return Range(int(low), int(high), 1, log)
    return Interval(float(low), float(high), log)


def _kinds(key: str) -> set[type]:
    """Which of int and float the key takes; none for a key that the schema does not know."""
    if introspection.is_mapping(Config, key.rpartition(".")[0]):
        return {float}
    return {kind for hint in introspection.field_types(Config, key) for kind in introspection.alternatives(hint)} & {
        int,
        float,
    }


def as_text(value: Any) -> str:
    """The value as a text that Hydra reads as this value. Its own `sweep_string_iterator` forgets the quotes of a choice."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        value = value.text
    if isinstance(value, list):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{as_text(name)}:{as_text(item)}' for name, item in value.items())}}}"
    if not isinstance(value, str):
        return "null" if value is None else str(value)
    return value if _stands_for_itself(value) else quoted(value)


def _stands_for_itself(text: str) -> bool:
    """Whether Hydra reads the text as just this text, without quotes."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return bool(OverridesParser.create().parse_override(f"key={text}").value() == text)
    except (HydraException, ValueError):
        return False


def _decimal(number: float | Decimal) -> Decimal:
    """The number as it is written: ten times 0.1 is 1."""
    return Decimal(repr(number)) if isinstance(number, float) else Decimal(number)
