"""Resolve references ${…} one level at a time, each once.

OmegaConf resolves a reference again for every value that leads to it. Thirty values that each refer twice to the one
before describe 2³⁰ texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from runner.config.documents import MAX_VALUES, check_size
from runner.config.validation import cut
from runner.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

MAX_CHARACTERS = 65_536
"""Longest text that references make."""
MAX_REFERRED = 1_000
"""Most values in a group that is referred to."""
MAX_PENDING = 500
"""Most values with references."""
MAX_ENTANGLED = 24
"""Most references that remain when no order of them can be found. They describe at most 3⁸ values."""


def resolve_in_order(config: DictConfig) -> None:
    """Replace the references of a configuration by their values, those first that others refer to.

    One that cannot be resolved stays. Raises `ConfigError` where they describe too much.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    pending = dict(_with_references(OmegaConf.to_container(config), ""))
    if len(pending) > MAX_PENDING:
        raise ConfigError(
            f"the configuration must have at most {MAX_PENDING} values with references ${{…}}, got {len(pending)}; use fewer"
        )
    while pending:
        ready = [
            name for name in pending if not any(_refers(pending[name], other) for other in pending if other != name)
        ]
        if not ready:
            _refuse_entangled(pending)
            return
        for name in ready:
            del pending[name]
            try:
                value = OmegaConf.select(config, name)
                _check(
                    f"`{name}`",
                    OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value,
                    MAX_REFERRED,
                )
                OmegaConf.update(config, name, value, merge=False)
            except (OmegaConfBaseException, RecursionError):
                continue  # reported with the others when all values are resolved
    _check("the configuration", OmegaConf.to_container(config), MAX_VALUES)


def _with_references(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield dotted key and text of each value with a reference."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        yield from _with_references(item, f"{name}.{key}" if name else str(key))
    if isinstance(value, str) and "${" in value:
        yield name, value


def _refers(text: str, name: str) -> bool:
    """Return whether a text may refer to a key, or to a group that it is in."""
    return not {*re.findall(r"[\w-]+", text)}.isdisjoint(name.split("."))


def _refuse_entangled(pending: dict[str, str]) -> None:
    count = sum(text.count("${") for text in pending.values())
    if count > MAX_ENTANGLED:
        name = next(iter(pending))
        raise ConfigError(
            f"`{cut(name)}` and others must have at most {MAX_ENTANGLED} references ${{…}} that depend on each other, got {count}; write values instead"
        )


def _check(name: str, value: Any, most: int) -> None:
    """Raise `ConfigError` for a value that is too large."""
    if isinstance(value, str) and len(value) > MAX_CHARACTERS:
        raise ConfigError(
            f"{cut(name)} must have at most {MAX_CHARACTERS:,} characters with references resolved, got {len(value):,}; use fewer"
        )
    try:
        check_size(value, most)
    except ValueError as error:
        raise ConfigError(f"{cut(name)} must be small with references resolved, but {error}; use fewer") from None
