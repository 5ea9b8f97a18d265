"""`hydra/sweeper=grid`: every combination of the values that are given."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
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
    values = [_values(override, word) for override, word in zip(overrides, words, strict=True)]
    count = prod(len(own) for own in values)
    if count > max_trials:
        sizes = " x ".join(str(len(own)) for own in values if len(own) > 1)
        raise ConfigError(
            f"`sweep.max_trials` must be at least the number of trials, but is {max_trials:,} where these values make "
            f"{sizes} = {count:,}; give fewer values, or sweep.max_trials={count}"
        )
    return [list(chosen) for chosen in product(*values)]


def _continuous(override: Override) -> str:
    key = override.get_key_element()
    return (
        f"`{key.lstrip('+')}` must be a list of values for a grid, but is {(override.input_line or '').partition('=')[2]}; "
        f"write {key}=1,2,3 or range(…), or search with hydra/sweeper=optuna"
    )


def _values(override: Override, word: str) -> list[str]:
    """The words of one key: one for every value, or the word as it is typed."""
    if not override.is_sweep_override():
        return [word]
    key = override.get_key_element()
    return list(dict.fromkeys(f"{key}={value}" for value in override.sweep_string_iterator()))
