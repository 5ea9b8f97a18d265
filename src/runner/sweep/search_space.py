"""The search space, in Hydra's notation for the command line: `optimizer.lr=tag(log, interval(1e-5, 1e-1))`.

This module does not import Optuna: a dimension takes any object with Optuna's `suggest_…` methods, and lists its own values.
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
from runner.config.overrides import parsed, quoted
from runner.config.schema import Config

if TYPE_CHECKING:
    from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

Value: TypeAlias = int | float | str
FORMS = "choice(a,b), range(1,10), interval(0,1) or tag(log, interval(1e-5,1e-1))"
"""Forms of a sweep, for messages."""

_REORDERING = re.compile(r"(shuffle|sort)\(")
_SWEEPING = re.compile(r"(tag|choice|range|interval|glob|shuffle|sort)\(")


class Suggester(Protocol):
    """Source of values, such as `optuna.trial.Trial`."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Return a number from low to high."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Return an integer from low to high."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """Return one of the choices."""


@dataclass(frozen=True)
class Interval:
    """All numbers from low to high, both included; uniform in the logarithm with `log`."""

    low: float
    high: float
    log: bool = False

    def suggest(self, suggester: Suggester, key: str) -> Value:
        """Return a suggested value for `key`."""
        return suggester.suggest_float(key, self.low, self.high, log=self.log)

    @property
    def ends(self) -> tuple[Value, ...]:
        """Smallest and largest value."""
        return self.low, self.high


@dataclass(frozen=True)
class Range:
    """The numbers low, low + step, … up to and including high; all integers, or all floats."""

    low: int | float
    high: int | float
    step: int | float = 1
    log: bool = False

    def suggest(self, suggester: Suggester, key: str) -> Value:
        """Return a suggested value for `key`."""
        if isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int):
            return suggester.suggest_int(key, self.low, self.high, step=self.step, log=self.log)
        return suggester.suggest_float(key, self.low, self.high, step=self.step)

    @property
    def values(self) -> tuple[Value, ...]:
        """All values in rising order."""
        kind = type(self.low)
        count = int((_decimal(self.high) - _decimal(self.low)) / _decimal(self.step)) + 1
        return tuple(kind(_decimal(self.low) + k * _decimal(self.step)) for k in range(count))

    @property
    def ends(self) -> tuple[Value, ...]:
        """Smallest and largest value."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """Several values without an order, each as text that Hydra parses as the value."""

    values: tuple[str, ...]

    def suggest(self, suggester: Suggester, key: str) -> Value:
        """Return a suggested value for `key`."""
        return str(suggester.suggest_categorical(key, self.values))

    @property
    def ends(self) -> tuple[Value, ...]:
        """All values: none lies between the others."""
        return self.values


Dimension: TypeAlias = Interval | Range | Choice


@dataclass(frozen=True)
class Space:
    """The swept keys with their dimensions, and the overrides that all trials share."""

    fixed: tuple[str, ...]
    dimensions: Mapping[str, Dimension]

    def suggest(self, suggester: Suggester) -> dict[str, Value]:
        """Return a suggested value for every key."""
        return {key: dimension.suggest(suggester, key) for key, dimension in self.dimensions.items()}

    def overrides(self, values: Mapping[str, Value]) -> list[str]:
        """Return the overrides of one trial."""
        return [*self.fixed, *(f"{key}={value}" for key, value in values.items())]

    @property
    def continuous(self) -> list[str]:
        """Keys whose values cannot be counted."""
        return [key for key, dimension in self.dimensions.items() if isinstance(dimension, Interval)]

    @property
    def numeric(self) -> list[str]:
        """Keys whose values are ordered numbers."""
        return [key for key, dimension in self.dimensions.items() if not isinstance(dimension, Choice)]

    @cached_property
    def grid(self) -> list[dict[str, Value]]:
        """Every combination of values, the last key varying fastest. There must be no `continuous` key."""
        values = [dimension.values for dimension in self.dimensions.values() if not isinstance(dimension, Interval)]
        return [dict(zip(self.dimensions, point, strict=True)) for point in product(*values)]

    def probes(self) -> Iterator[list[str]]:
        """Yield the overrides of a few trials that contain the ends of every dimension, to check them before the start."""
        ends = {key: dimension.ends for key, dimension in self.dimensions.items()}
        for k in range(max(map(len, ends.values()), default=0)):
            yield self.overrides({key: values[k % len(values)] for key, values in ends.items()})


def read(arguments: Sequence[str]) -> tuple[Space, list[str]]:
    """Return the search space of the arguments, and a problem for each argument that cannot be searched."""
    fixed: list[str] = []
    dimensions: dict[str, Dimension] = {}
    problems: list[str] = []
    for argument in arguments:
        override = _parse(argument, problems)
        if override is None or not override.is_sweep_override():
            fixed.append(argument)
            continue
        key = override.get_key_element()
        if key in dimensions:
            problems.append(f"`{key}` must be swept once, got two sweeps; leave one out")
        dimension, problem = _dimension(override)
        if dimension is not None:
            dimensions[key] = dimension
        problems += [problem] if problem else []
    names = {argument.partition("=")[0].lstrip("+") for argument in fixed}
    problems += [
        f"`{key}` must be fixed or swept, got both; leave one out" for key in dimensions if key.lstrip("+") in names
    ]
    return Space(tuple(fixed), dimensions), problems


def _parse(argument: str, problems: list[str]) -> Override | None:
    """Parse the argument with Hydra. Return None if that fails, and add a problem if the argument looks like a sweep."""
    # A formula fails as well: it is one value for all trials.
    from hydra.errors import HydraException

    try:
        return parsed(argument)
    except (HydraException, ValueError) as error:
        name, _, text = argument.partition("=")
        if _SWEEPING.match(text):
            reason = str(error).splitlines()[0].rpartition("': ")[2]
            problems.append(
                f"`{name}` must be a sweep that Hydra can parse, got {validation.cut(text)} ({reason}); write {FORMS}"
            )
        return None


def _dimension(override: Override) -> tuple[Dimension | None, str | None]:
    """Return the dimension of a swept key, or None and the problem with it."""
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
        return None, f"`{name}` must be {dimension}, got {text}; write {FORMS}"
    return dimension, None


def _range(sweep: RangeSweep, log: bool) -> Range | str:
    """Return Hydra's range, which excludes `stop`, in rising order, or the requirement that it does not meet."""
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
        return "a range of integers of at least 1 with step 1 if it is tagged log"
    return Range(kind(low), kind(high), kind(abs(step)), log)


def _interval(override: Override, sweep: IntervalSweep, log: bool) -> Interval | Range | str:
    """Return the dimension of an interval, or the requirement that it does not meet.

    It is a range of integers if the key takes only these, or if it takes both and both ends are written as integers.
    """
    assert sweep.start is not None
    assert sweep.end is not None
    low, high = sweep.start, sweep.end
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return "an interval from a smaller to a larger finite number"
    if log and low <= 0:
        return "an interval above 0 if it is tagged log"
    kinds = _kinds(override.key_or_group)
    integral = low == int(low) and high == int(high)
    if kinds == {int} and not integral:
        return "an interval of integers"
    written = integral and not re.search(r"\d\.|\.\d|\de", override.get_value_string(), re.IGNORECASE)
    if kinds == {int} or (written and kinds != {float}):
        return Range(int(low), int(high), 1, log)
    return Interval(float(low), float(high), log)


def _kinds(key: str) -> set[type]:
    """Return which of int and float the key takes; empty for a key that the schema does not have."""
    if introspection.is_mapping(Config, key.rpartition(".")[0]):
        return {float}
    return {kind for hint in introspection.field_types(Config, key) for kind in introspection.alternatives(hint)} & {
        int,
        float,
    }


def as_text(value: Any) -> str:
    """Return the value as text that Hydra parses as this value."""
    # Hydra's own `sweep_string_iterator` drops the quotes of a choice.
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        value = value.text
    if isinstance(value, list):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{as_text(name)}:{as_text(item)}' for name, item in value.items())}}}"
    if not isinstance(value, str):
        return "null" if value is None else str(value)
    return value if _needs_no_quotes(value) else quoted(value)


def _needs_no_quotes(text: str) -> bool:
    """Whether Hydra parses the text, without quotes, as the same text."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return bool(OverridesParser.create().parse_override(f"key={text}").value() == text)
    except (HydraException, ValueError):
        return False


def _decimal(number: float | Decimal) -> Decimal:
    """Return the number exactly as it is written: ten times 0.1 is 1."""
    return Decimal(repr(number)) if isinstance(number, float) else Decimal(number)
