"""`hydra/sweeper=grid`: every combination of the values that are given."""

from __future__ import annotations

import random
from collections.abc import Sequence
from decimal import Decimal
from itertools import product
from math import ceil, prod
from typing import TYPE_CHECKING, Any

from runner.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def jobs(words: Sequence[str], config_loader: Any, max_trials: int) -> list[list[str]]:
    """The words of every trial, the last key the fastest. Raises `ConfigError` for what is no list of values, or too many."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = OverridesParser.create(config_loader=config_loader).parse_overrides(list(words))
    problems = [_continuous(o) for o in overrides if o.is_sweep_override() and not o.is_discrete_sweep()]
    if problems:
        raise ConfigError(problems)
    pairs = list(zip(overrides, words, strict=True))
    _refuse_many([_size(*pair) for pair in pairs], max_trials)
    return [list(chosen) for chosen in product(*(_values(*pair) for pair in pairs))]


def _refuse_many(sizes: Sequence[int], max_trials: int) -> None:
    count = prod(sizes)
    if count > max_trials:
        several = [f"{size:,}" for size in sizes if size > 1]
        shown = f"{' x '.join(several)} = {count:,}" if len(several) > 1 else f"{count:,}"
        raise ConfigError(
            f"`sweep.max_trials` must be at least the number of trials, but is {max_trials:,} where these values make {shown}; "
            f"give fewer values, or sweep.max_trials={count}"
        )


def _size(override: Override, word: str) -> int:
    """How many values a word gives; those of a range are not made, since there may be too many."""
    from hydra.core.override_parser.types import RangeSweep

    value: Any = override.value()
    if isinstance(value, RangeSweep):
        # Exactly, as Hydra counts.
        start, stop, step = (Decimal(number or 0) for number in (value.start, value.stop, value.step))
        return max(0, ceil((stop - start) / step))
    return len(_values(override, word))


def _continuous(override: Override) -> str:
    key = override.get_key_element()
    return (
        f"`{key.lstrip('+')}` must be a list of values for a grid, but is {(override.input_line or '').partition('=')[2]}; "
        f"write {key}=1,2,3 or range(…), or search with hydra/sweeper=optuna"
    )


def _values(override: Override, word: str) -> list[str]:
    """The words of one key: one for every value, or the word as it is typed.

    shuffle(…) is drawn by the word, so that a sweep which goes on has the same trials.
    """
    if not override.is_sweep_override():
        return [word]
    key, state = override.get_key_element(), random.getstate()
    random.seed(word)
    try:
        return list(dict.fromkeys(f"{key}={value}" for value in override.sweep_string_iterator()))
    finally:
        random.setstate(state)
