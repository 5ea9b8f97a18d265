"""What Python code gives to a run: a module instead of the name of one, and rows instead of the name of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from runner.config import schema as c
from runner.config.overrides import key_of, quoted
from runner.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from runner.data.progress import Report
    from runner.data.tables import Opening, Table
    from runner.models.base import Model

PARTS = ("train", "valid", "test")
"""Parts whose rows can be given by themselves."""

_AGAIN = 'overrides=["resume=RUN_DIR"]'


@dataclass(frozen=True, eq=False)
class Given:
    """What a call of `runner.run` gives besides the configuration; nothing by default."""

    model: Any = None
    """A module, its class, or a function that returns one."""
    rows: Mapping[str, Any] = field(default_factory=dict)
    """A table, or a pair (X, y), by part: "train" and those that have rows of their own."""
    targets: tuple[str, ...] | None = None
    """Names of the targets, if they were given."""

    @staticmethod
    def of(model: Any, data: Any, target: str | Sequence[str] | None) -> Given:
        """Return what the arguments of `runner.run` give. Raises `ConfigError`."""
        targets = (target,) if isinstance(target, str) else None if target is None else tuple(target)
        if targets is not None and (data is None or not all(isinstance(name, str) for name in targets)):
            wanted = "None without `data`" if data is None else "the name of a column, or several"
            raise ConfigError(
                f"`target` must be {wanted}, got {target!r}; {'use data.target' if data is None else 'name one'}"
            )
        if model is not None:
            _custom().described(model)
        return Given(model, _by_part(data), targets)

    # ------------------------------------------------------------------------------------------- the configuration of it

    def arguments(self, others: Sequence[str]) -> list[str]:
        """Return the arguments of the command line that say what was given, beside the `others` of the user.

        A run that is resumed has them in its configuration. Raises `ConfigError` for rows without the name of the target.
        """
        typed = {*map(key_of, others)}
        given = {"data": bool(self.rows), "model": self.model is not None}
        if twice := [key for key in given if given[key] and key in typed]:
            raise ConfigError(
                f"`{key}` must not be in `overrides`, because runner.run was given {key}=…; remove one of them"
                for key in twice
            )
        if "resume" in typed:
            return []
        settings: dict[str, str] = {}
        if self.rows:
            settings["data"] = "memory"
            if "data.target" not in typed:
                settings["data.target"] = _listed(self._names())
            if own := [part for part in self.rows if part != "train"]:
                settings |= {"data.parts": f"[{','.join(own)}]", "data.split.valid": "0", "data.split.test": "0"}
        if self.model is not None:
            settings |= self._model_settings()
        return [f"{key}={value}" for key, value in settings.items() if key not in typed]

    def require_importable(self) -> None:
        """Raise `ConfigError` for what another process cannot import, since trials of a sweep may run in others."""
        problems = []
        if self.rows:
            problems.append(
                "`data` must not be given to runner.multirun, whose trials may run in other processes; write the rows to a file for "
                "data=parquet, or call runner.run for each trial"
            )
        if self.model is not None and _custom().importable(self.model) is None:
            problems.append(
                "`model` must be a class that can be imported, because the trials of runner.multirun may run in other processes, got "
                f"{_custom().described(self.model)}; save the class in a module, or call runner.run for each trial"
            )
        if problems:
            raise ConfigError(problems)

    def _names(self) -> tuple[str, ...]:
        """Return the names of the targets: those of y are y, or y0, y1, … if nothing else is said."""
        import numpy as np

        if self.targets is not None:
            return self.targets
        rows = self.rows["train"]
        if not (isinstance(rows, (tuple, list)) and len(rows) == 2):
            columns = [str(name) for name in getattr(rows, "columns", ())][-10:]
            hint = f", such as {columns[-1]}" if columns else ""
            raise ConfigError(f"`target` must name the column of `data` to predict{hint}, got None; name it")
        shape = np.shape(rows[1])
        return tuple(f"y{place}" for place in range(shape[1])) if len(shape) == 2 and shape[1] > 1 else ("y",)

    def _model_settings(self) -> dict[str, str]:
        custom = _custom()
        target = custom.importable(self.model)
        if target is not None:
            return {"model": "custom", "model.target": quoted(target.text)}
        codes = str(custom.takes_codes(self.model)).lower()
        return {"model": "memory", "model.target": quoted(custom.described(self.model)), "model.codes": codes}

    @property
    def packages(self) -> list[str]:
        """The package of a class that is imported again. Its code is running already, so that it need not be trusted."""
        target = None if self.model is None else _custom().importable(self.model)
        return [] if target is None else [target.package]

    # --------------------------------------------------------------------------------------------------------- the run

    def require_fit(self, config: c.Config) -> None:
        """Raise `ConfigError` with every problem of what is given for this configuration, and of what is not."""
        problems = [*self._problems_of_rows(config.data), *self.problems_of_model(config.model)]
        if problems:
            raise ConfigError(problems)

    def _problems_of_rows(self, data: c.DataConfig) -> Iterator[str]:
        if isinstance(data, c.Memory) != bool(self.rows):
            if not self.rows:
                yield (
                    "`data` must not be memory, whose rows only Python code can give; call runner.run(data=…), with "
                    f"{_AGAIN} to resume a run, or use data=csv with a file of the rows"
                )
            else:
                yield f"`data` must be memory, because runner.run was given the rows, got {data.name}; remove one of them"
        elif isinstance(data, c.Memory):
            own = sorted({*self.rows} - {"train"})
            if own != sorted(data.parts):
                yield f"`data` must have rows of their own for {_parts(data.parts)}, as the run has, got {_parts(own)}; give the same"
            if self.targets is not None and self.targets != data.targets:
                yield f"`target` must be {_listed(data.targets)}, as `data.target` is, got {_listed(self.targets)}; remove one of them"

    def problems_of_model(self, model: c.ModelConfig) -> Iterator[str]:
        """Yield the problems of a module that is given for this configuration of a model, or is not."""
        if isinstance(model, c.MemoryModel):
            if self.model is None:
                yield (
                    f"`model` must not be memory, whose module ({model.target}) only Python code can give; call runner.run(model=…), "
                    f"with {_AGAIN} to resume a run, or runner.load(RUN_DIR, model=…) to use one"
                )
            elif _custom().takes_codes(self.model) != model.codes:
                yield (
                    f"`model` must {'' if model.codes else 'not '}take categories, as {model.target} did, got "
                    f"{_custom().described(self.model)}; give the same model"
                )
        elif self.model is not None and not self._names_model(model):
            found = model.target if isinstance(model, c.CustomModel) else model.name
            yield (
                f"`model` must be {_custom().described(self.model)}, because it was given to Python, got {found}; remove one of them"
            )

    def _names_model(self, model: c.ModelConfig) -> bool:
        """Return whether a configuration names the class that is given."""
        target = _custom().importable(self.model)
        return isinstance(model, c.CustomModel) and target is not None and model.target == target.text

    def read(self, config: c.DataConfig) -> Callable[[int, Report], Table] | None:
        """Return the function that reads the given rows, as the builder of a data source does; None without them."""
        if not self.rows:
            return None
        assert isinstance(config, c.Memory)
        return lambda seed, report: self._table(config)

    def _table(self, config: c.Memory) -> Table:
        from runner.data import tables

        return tables.of_openings(config, {part: self._opening(part, config.targets) for part in self.rows})

    def _opening(self, part: str, targets: Sequence[str]) -> Opening:
        from runner.data.given_rows import open_rows
        from runner.data.tables import Opening

        key = "data" if len(self.rows) == 1 else f'data["{part}"]'
        return Opening(key, lambda: open_rows(self.rows[part], targets, key))

    def make(self, config: c.ModelConfig) -> Callable[..., Model] | None:
        """Return the builder of the given model; None where the configuration has one of its own."""
        return partial(_custom().of_object, config, given=self.model) if isinstance(config, c.MemoryModel) else None

    def remarks(self, config: c.Config) -> Iterator[str]:
        """Yield which promise of other runs does not hold for a run with what is given."""
        own = [
            key
            for key, given in (("data", config.data), ("model", config.model))
            if isinstance(given, c.Memory | c.MemoryModel)
        ]
        if own:
            named = " and ".join(f"`{key}`" for key in own)
            again = ", ".join(f"{key}=…" for key in own)
            yield (
                f"{named} {'is' if len(own) == 1 else 'are'} in Python alone, so the command line cannot resume this run; "
                f"runner.run({again}, {_AGAIN}) can"
            )

    def receive(self, state: Mapping[str, Tensor]) -> None:
        """Give a module that was given the values, by name, that the run reports. Classes and functions stay as they are."""
        if self.receives:
            self.model.load_state_dict(_custom().state_of_module(state))

    @property
    def receives(self) -> bool:
        """Whether a module was given."""
        import torch

        return isinstance(self.model, torch.nn.Module)


NOTHING = Given()


def _by_part(data: Any) -> dict[str, Any]:
    """Return rows by part. Raises `ConfigError` for a dict with other keys."""
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        return {"train": data}
    if others := [name for name in data if name not in PARTS]:
        raise ConfigError(
            f"`data` must be a table, a pair (X, y), or these by part (train, valid, test), got a dict with {others[0]!r}; "
            "make a table of its columns"
        )
    if "train" not in data:
        raise ConfigError(f"`data` must have rows for train, got {_parts([*data])}; add them")
    return {part: data[part] for part in PARTS if part in data}


def _parts(parts: Sequence[str]) -> str:
    return " and ".join(parts) or "none"


def _listed(names: Sequence[str]) -> str:
    """Return names as a value of the command line."""
    return quoted(names[0]) if len(names) == 1 else f"[{','.join(map(quoted, names))}]"


def _custom() -> Any:
    """Return the module that knows models of the user's own. It imports torch, which a run without one does later."""
    from runner.models import custom

    return custom
