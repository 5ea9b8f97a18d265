"""Data that the trials of a sweep share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from runner.config.schema import Config, DataConfig, plain

if TYPE_CHECKING:
    from runner.data.dataset import Dataset
    from runner.data.progress import Report
    from runner.data.tables import Table

    Reader = Callable[[int, Report], Table]


class SharedData:
    """One dataset for all trials with the same configuration of the data, and one table for all datasets of the same source.

    A table is kept only where several datasets are made of it, such as those of the folds of a cross-validation.
    """

    def __init__(self, configs: Iterable[Config] = ()) -> None:
        self._datasets: dict[str, Dataset] = {}
        self._tables: dict[str, Table] = {}
        made = dict[str, set[str]]()
        for config in configs:
            if (source := config.data.table_key) is not None:
                made.setdefault(source, set()).add(_key(config.data, config.seed))
        self._kept = {source for source, datasets in made.items() if len(datasets) > 1}

    def build(
        self, config: DataConfig, seed: int, dtype: Any, *more: Any, read: Reader | None = None, **options: Any
    ) -> Dataset:
        """Return the dataset of a trial, as `data.dataset.build` does."""
        from runner.data import dataset

        key = json.dumps([_key(config, seed), str(dtype), {**options, "report": None}])
        if key not in self._datasets:
            self._datasets[key] = dataset.build(
                config, seed, dtype, *more, **options, read=partial(self._table, config, read or config.build)
            )
        return self._datasets[key]

    def _table(self, config: DataConfig, read: Reader, seed: int, report: Report) -> Table:
        source = config.table_key
        if source is None or source not in self._kept:
            return read(seed, report)
        if source not in self._tables:
            self._tables[source] = read(seed, report)
        shared = self._tables[source]
        return replace(shared, features=[*shared.features])  # which `build` takes out of it one by one


def _key(config: DataConfig, seed: int) -> str:
    """Return everything that decides the rows of a dataset."""
    return json.dumps([plain(config), seed if config.seed is None else config.seed])
