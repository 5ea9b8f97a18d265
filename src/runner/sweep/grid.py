"""`hydra/sweeper=grid`: every combination of the values that are given."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice, product
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
    values = [_values(override, word, max_trials) for override, word in zip(overrides, words, strict=True)]
    _refuse_many([len(own) for own in values], max_trials)
    return [list(chosen) for chosen in product(*values)]


def _refuse_many(sizes: Sequence[int], max_trials: int) -> None:
    count, endless = prod(sizes), any(size > max_trials for size in sizes)
    if count <= max_trials:
        return
    several = [f"{size:,}" for size in sizes if size > 1]
    shown = f"{' x '.join(several)} = {count:,}" if len(several) > 1 else f"{count:,}"
    made, advice = ("more", "") if endless else (shown, f", or sweep.max_trials={count}")
    raise ConfigError(
        f"`sweep.max_trials` must be at least the number of trials, but is {max_trials:,} where these values make {made}; "
        f"give fewer values{advice}"
    )


def _continuous(override: Override) -> str:
    key = override.get_key_element()
    return (
        f"`{key.lstrip('+')}` must be a list of values for a grid, but is {(override.input_line or '').partition('=')[2]}; "
        f"write {key}=1,2,3 or range(…), or search with hydra/sweeper=optuna"
    )


def _values(override: Override, word: str, most: int) -> list[str]:
    """The words of one key: one for every value, but one more than `most` at most; or the word as it is typed.

    shuffle(…) is drawn by the word, so that a sweep which goes on has the same trials.
    """
    if not override.is_sweep_override():
        return [word]
    key, state = override.get_key_element(), random.getstate()
    random.seed(word)
    try:
        values = islice(override.sweep_string_iterator(), most + 1)
        return list(dict.fromkeys(f"{key}={value}" for value in values))
    finally:
        random.setstate(state)
