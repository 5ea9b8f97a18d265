"""`hydra/sweeper=grid`: every combination of the given values."""

from __future__ import annotations

import random
from collections.abc import Sequence
from decimal import Decimal
from itertools import product
from math import ceil, prod
from typing import TYPE_CHECKING, Any

from runner.config.overrides import parsed
from runner.config.schema import MOST_TRIALS
from runner.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Hydra's own `BasicSweeper.split_arguments` makes all combinations before they can be counted, keeps repeated values, and draws
# `shuffle(…)` anew when a sweep is resumed. It also rewrites the fixed overrides (`false` becomes `False`), which would change sweep.json.


def jobs(arguments: Sequence[str], config_loader: Any, max_trials: int) -> list[list[str]]:
    """Return the overrides of every trial, the last key varying fastest.

    Raises `ConfigError` if a key has no list of values, or if there are more than `max_trials` combinations.
    """
    overrides = [parsed(argument, config_loader) for argument in arguments]
    problems = [_continuous(o) for o in overrides if o.is_sweep_override() and not o.is_discrete_sweep()]
    if problems:
        raise ConfigError(problems)
    pairs = list(zip(overrides, arguments, strict=True))
    _check_count([_size(*pair) for pair in pairs], max_trials)
    return [list(chosen) for chosen in product(*(_values(*pair) for pair in pairs))]


def _check_count(sizes: Sequence[int], max_trials: int) -> None:
    count = prod(sizes)
    if count > max_trials:
        factors = [f"{size:,}" for size in sizes if size > 1]
        shown = f"{' x '.join(factors)} = {count:,}" if len(factors) > 1 else f"{count:,}"
        larger = f", or sweep.max_trials={count}" if count <= MOST_TRIALS else ""
        raise ConfigError(
            f"`sweep.max_trials` must be at least the number of trials ({shown}), got {max_trials:,}; give fewer values{larger}"
        )


def _size(override: Override, argument: str) -> int:
    """Number of values of an override. The values of a range are counted, not made: there may be too many."""
    from hydra.core.override_parser.types import RangeSweep

    value: Any = override.value()
    if isinstance(value, RangeSweep):
        # Decimal arithmetic, as in Hydra.
        start, stop, step = (Decimal(number or 0) for number in (value.start, value.stop, value.step))
        return max(0, ceil((stop - start) / step))
    return len(_values(override, argument))


def _continuous(override: Override) -> str:
    key = override.get_key_element()
    return (
        f"`{key.lstrip('+')}` must be a list of values for a grid, got {(override.input_line or '').partition('=')[2]}; "
        f"write {key}=1,2,3 or range(…), or search with hydra/sweeper=optuna"
    )


def _values(override: Override, argument: str) -> list[str]:
    """Return the overrides of one key: one for every value, or the argument as typed if it is one value."""
    if not override.is_sweep_override():
        return [argument]
    key, state = override.get_key_element(), random.getstate()
    # Hydra shuffles with Python's generator: seeded by the argument, it gives a resumed sweep the same order.
    random.seed(argument)
    try:
        return list(dict.fromkeys(f"{key}={value}" for value in override.sweep_string_iterator()))
    finally:
        random.setstate(state)
