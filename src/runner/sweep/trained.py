"""The trained models that a path stands for: one run, an export, or the best setting of a sweep with all of its seeds."""

from __future__ import annotations

import json
import os
from pathlib import Path

from runner.config.schema import Config, plain
from runner.errors import CheckpointError
from runner.runs.records import SWEEP
from runner.sweep.results import Results, collect, settings
from runner.training import exported, trained
from runner.training.given import NOTHING, Given
from runner.training.predicting import require_alike
from runner.training.trained import Trained

_DECIDE_ROWS = ("data.split.", "data.path", "data.valid_path", "data.test_path", "data.missing")
"""Beginnings of keys that decide which rows a trial is compared on."""


def open_models(path: str, state: str = "selected", given: Given = NOTHING) -> list[Trained]:
    """Return the model of a run directory or of an export; of a sweep directory the models of all seeds of its best setting.

    The best setting is the first one of the sweep's table. `given` has the module, if only Python code has it. Raises `CheckpointError` if there is no model, and for a sweep whose
    trials were trained or compared on different rows.
    """
    if exported.is_export(path):
        return [exported.read(path, state, given)]
    if not os.path.isfile(Path(path) / SWEEP):
        return [trained.of_run(path, state, given)]
    results = collect(Path(path))
    _refuse_other_rows(path, results)
    best = next((setting for setting in settings(results) if setting.finished), None)
    if best is None:
        raise CheckpointError(
            f"{path} must have a finished trial to predict from, got {results.counts}; resume the sweep"
        )
    numbers = sorted(member.number for member in best.finished.values())
    models = [trained.of_run(str(Path(path) / str(number)), state, given) for number in numbers]
    if len({_rows_of(model.config) for model in models}) > 1:
        raise CheckpointError(
            f"{path} must have trials with the same training rows for a mean over seeds, but each seed has its own split; give the "
            "directory of one trial, or repeat the sweep with data.seed=0"
        )
    require_alike(models)
    return models


def _refuse_other_rows(path: str, results: Results) -> None:
    """Raise `CheckpointError` for a sweep whose settings were compared on different rows."""
    if results.folds is not None:
        raise CheckpointError(
            f"{path} must be a sweep over settings and seeds, got one over {results.folds} folds, whose models were trained on "
            "different rows; train one run with the best setting"
        )
    mixed = [key for key in results.varied if key == "data" or key.startswith(_DECIDE_ROWS)]
    if mixed:
        raise CheckpointError(
            f"{path} must be a sweep whose trials were compared on the same rows, but it varies {', '.join(mixed)}; give the directory "
            "of one trial"
        )


def _rows_of(config: Config) -> str:
    """Return what decides the rows of a run's parts."""
    data, split = config.data, config.data.split
    divided = split.order == "random" and any(split.shares.values())
    drawn = data.table_key is None and data.known_rows is not None
    seed = (config.seed if data.seed is None else data.seed) if divided or drawn else None
    return json.dumps([data.table_key or plain(data), plain(split), seed])
