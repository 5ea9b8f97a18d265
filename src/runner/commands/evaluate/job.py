"""The work of `evaluate`: rows in, metrics out, and what is shown and written of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.commands import result_file
from runner.commands.evaluate import plots, report
from runner.commands.evaluate.compared import Compared, Sample
from runner.commands.evaluate.groups import Groups
from runner.commands.evaluate.importance import Importance, importances
from runner.commands.new_rows import introduction, new_scores, open_predictor, opened, reading, target_of, weight_of
from runner.config import validation
from runner.data.diagnostics import listed, named
from runner.data.new_rows import NewRows
from runner.errors import ConfigError, DataError
from runner.runs import plots as run_plots
from runner.runs.atomic import as_json
from runner.training.predicting import Predictor

REPEATS = (2, 1000)
"""Least and largest number of shuffles: a single one has no interval."""

MOST_ROWS = 100_000
"""Largest number of rows in memory, for plots and importance."""

MOST_CELLS = 20_000_000
"""Largest number of the model's inputs for these rows: 80 MB of float32."""


def evaluate(options: Any) -> Iterator[str]:
    """Yield the lines of an evaluation, and write the files that the options ask for. Raises `InputError` and `RunFailed`."""
    if problems := _problems(options):
        raise ConfigError(problems)
    predictor = open_predictor(options)
    config = reading(predictor.config, options.overrides)
    yield from introduction(predictor)
    with opened(options.input, config, predictor, _column(options.by), "--by") as rows:
        _require_targets(rows)
        if rows.notes:
            yield f"read     {'; '.join(rows.notes)}"
        found = Evaluation(predictor, rows, sampled=bool(options.plots or options.importance))
        found.read()
        yield f"rows     {found.counted} of {options.input}"
    for warning in (*rows.warnings(), *found.warnings()):
        yield f"note: {warning}"
    yield from report.metrics(found.scores, found.groups, predictor)
    important: list[Importance] = []
    if options.importance:
        yield report.shuffling(len(predictor.preprocessing.kinds), options.importance, found.sample)
        important += importances(predictor, found.sample.rows(), options.importance)
        yield from report.importance(important)
    if options.plots:
        files = plots.draw(predictor, found.sample.rows(), found.sample.total)
        with result_file.explained(options.plots, "--plots"):
            run_plots.write(Path(options.plots), files)
        yield f"plots    {', '.join(f'{name}.png' for name in files)} in {options.plots}"
    if options.output:
        document = report.document(predictor, options.input, found.scores, found.groups, important)
        with result_file.explained(options.output):
            result_file.write(options.output, as_json({**document, "left_out": rows.rows - found.scores.rows}))


def _column(name: str | None) -> list[str]:
    return [] if name is None else [validation.normalized(name)]


def _problems(options: Any) -> list[str]:
    """Return the problems with the options, before anything is read."""
    problems = []
    low, high = REPEATS
    if options.importance is not None and not low <= options.importance <= high:
        problems.append(
            f"`--importance` must be a number of shuffles from {low} to {high:,}, got {options.importance}; use 10"
        )
    if options.plots is not None:
        problems += _folder_problems(options.plots, force=options.force)
    if options.output is not None:
        problems += result_file.refuse(options.output, options.input, force=options.force)
    return problems


def _folder_problems(path: str, *, force: bool) -> list[str]:
    folder = Path(path)
    found = {
        f"a folder, got the file {path!r}; name a folder": folder.exists() and not folder.is_dir(),
        f"a new folder, got {path!r}, which exists; add --force to write into it": folder.exists() and not force,
        f"in a folder that exists, got {path!r}; make {str(folder.parent)!r} first": not folder.parent.is_dir(),
    }
    return [f"`--plots` must be {text}" for text, wrong in found.items() if wrong][:1]


def _require_targets(rows: NewRows) -> None:
    lacking = [name for name in rows.preprocessing.target_names if name not in rows.names]
    if lacking:
        raise DataError(
            f"`data.path` must have the targets that predictions are compared with, but {named(rows.source.path)} lacks "
            f"{listed(lacking)}; add them, or use predict"
        )


class Evaluation:
    """Results of one pass over all rows."""

    def __init__(self, predictor: Predictor, rows: NewRows, *, sampled: bool) -> None:
        self._predictor, self._rows = predictor, rows
        self.scores = new_scores(predictor)
        """Metrics of all rows."""
        self.groups = Groups(rows.keep[0], lambda: new_scores(predictor)) if rows.keep else None
        """Metrics of each value of a column, if one is named."""
        self._features = [*predictor.preprocessing.kinds] if sampled else []
        encoding = predictor.preprocessing.encoding
        inputs = len(encoding.names) + len(encoding.cardinalities)
        self.sample = Sample(min(MOST_ROWS, max(MOST_CELLS // inputs, 1)))
        """Rows that are kept, with `sampled`."""
        self._not_finite = self._not_positive = 0

    def read(self) -> None:
        """Read all rows. Raises `DataError` if none counts."""
        targets = self._predictor.target_names
        for block in self._rows.blocks():
            features = {name: block.columns[name] for name in self._features}
            prediction = self._predictor.of_columns(block.columns).values
            weight = weight_of(block, self._predictor)
            rows = Compared(features, target_of(block, targets), prediction, weight)
            known = rows.known
            rows = rows.take(known)
            self._not_finite += int((~rows.prediction.isfinite()).any(1).sum())
            self._not_positive += int((rows.target <= 0).any(1).sum())
            self.scores.add(rows.target, rows.prediction, rows.weight)
            if self.groups is not None:
                codes = self._rows.encode(block.kept[self.groups.column], self.groups.places)
                self.groups.add(codes[known], rows)
            if self._features:
                self.sample.add(rows)
        if not self.scores.rows:
            raise DataError(
                f"`data.path` must have rows with {self._needed}, but none of the {self._rows.rows:,} rows of "
                f"{named(self._rows.source.path)} is one; fill them in, or use predict"
            )

    @property
    def counted(self) -> str:
        """Number of rows that count, and of the others."""
        left_out = self._rows.rows - self.scores.rows
        more = f" with {self._needed}, {left_out:,} others are left out," if left_out else ""
        return f"{self.scores.rows:,}{more}"

    @property
    def _needed(self) -> str:
        """Values that a row must have to count, as a phrase."""
        target = "the target" if len(self._predictor.target_names) == 1 else "all targets"
        return target if self._predictor.config.data.weighted_by is None else f"{target} and a weight above 0"

    def warnings(self) -> Iterator[str]:
        """Yield what the user should know of the predictions and targets."""
        if self._not_positive and self._predictor.config.data.log_target:
            rows = "1 row has" if self._not_positive == 1 else f"{self._not_positive:,} rows have"
            yield f"{rows} a target that is not positive, so there is no loss: the model predicts the logarithm"
        if self._not_finite:
            yield f"{self._not_finite:,} predictions are not finite: the values of these rows are far from those of the training rows"
