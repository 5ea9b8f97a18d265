"""Results of a sweep: one row per trial, and one per setting with the spread over its seeds."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.overrides import values_of
from runner.errors import CheckpointError
from runner.optim.student_t import Estimate, estimate
from runner.runs.atomic import write_atomic
from runner.runs.records import baselines, read_summary, read_sweep, scalar_parameters, selected_metrics
from runner.sweep.arguments import FOLD, FOLDS

if TYPE_CHECKING:
    from rich.table import Table

REPETITIONS = ("seed", "data.seed", FOLD)
"""Keys in which the repetitions of one setting differ."""

UNREADABLE = "unreadable"
"""State of a member that finished, but whose summary is missing or damaged."""

SHOWN_SETTINGS = 20
"""Largest number of settings in the table."""

SHOWN_ROWS = 60
"""Largest number of rows of the table."""

FEWEST_SETTINGS = 5
"""Number of settings that the table has at least, where there are so many, before it has the parameters of each."""

_MAIN = ("valid/rmse", "test/rmse", "train/rmse")
_PARTS = ("train", "valid", "test")
_KNOWN = ("loss", "rmse", "mae", "r2")
_NOT_FINITE = {text: float(text) for text in ("nan", "inf", "-inf")}


@dataclass(frozen=True)
class Member:
    """One trial. Only a finished one has steps, metrics, seconds of training and its parameters' SHA-256.

    `state` is the state in `sweep.json`, or "unreadable". `reason` says why the trial did not finish. `converged` says whether
    its fit has converged, where that is known. `parameters` has those of a formula, as "param/a" → value, and nothing for other
    models.
    """

    number: int
    values: Mapping[str, Any]
    state: str
    reason: str | None = None
    steps: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    parameters_sha256: str | None = None
    converged: bool | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Name of a simple model → its metrics on the same rows."""

    @property
    def results(self) -> dict[str, float]:
        """Metrics and parameters."""
        return {**self.metrics, **self.parameters}

    @property
    def failed(self) -> bool:
        """Whether the trial failed, or finished and has no readable summary."""
        return self.state in ("failed", UNREADABLE)


@dataclass(frozen=True)
class Results:
    """All trials in the order of their numbers. `metric` is the one that compares them; "" if none has finished."""

    name: str
    swept: Sequence[str]
    members: Sequence[Member]
    metric: str
    larger_is_better: bool
    searched: bool = False
    """Whether the metric is that of a search."""
    folds: int | None = None
    """Number of folds of a cross-validation, or None."""

    @property
    def held_out(self) -> float:
        """Validation rows of a member for each of its training rows, where members share their rows as folds do; else 0."""
        return 0.0 if self.folds is None else 1 / (self.folds - 1)

    @property
    def varied(self) -> list[str]:
        """Swept keys that make up a setting: all but the seeds and the fold."""
        return [key for key in self.swept if key not in REPETITIONS]

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics of the members, ordered by train, valid, test, in each by loss, rmse, mae, r2, others, and then by target."""
        return _metrics(self.members)

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters of the members' formulas, in the order in which they come up."""
        return [*dict.fromkeys(name for member in self.members for name in member.parameters)]

    @property
    def knows_convergence(self) -> bool:
        """Whether it is known of some members whether their fits have converged."""
        return any(member.converged is not None for member in self.members)

    @property
    def counts(self) -> str:
        """Text such as "512 trials, 3 failed"."""
        states = Counter(member.state for member in self.members if member.state != "finished")
        trials = f"{len(self.members):,} {'trial' if len(self.members) == 1 else 'trials'}"
        return ", ".join([trials, *(f"{count:,} {state}" for state, count in states.items())])


@dataclass(frozen=True)
class Setting:
    """Members that differ in their seeds and folds only."""

    values: Mapping[str, Any]
    members: Sequence[Member]
    held_out: float = 0.0
    """Held-out rows of a member for each of its training rows, where members share their rows; else 0."""

    @property
    def finished(self) -> dict[str, Member]:
        """Seeds and fold as JSON → the finished member that has them; the first one if a sweep has several."""
        finished = [member for member in self.members if member.state == "finished"]
        return {json.dumps([member.values.get(key) for key in REPETITIONS]): member for member in reversed(finished)}

    @property
    def failed(self) -> int:
        """Number of members that failed."""
        return sum(member.failed for member in self.members)

    @property
    def converged(self) -> int:
        """Number of members whose fit has converged."""
        return sum(member.converged is True for member in self.members)

    def estimate(self, name: str) -> Estimate:
        """Return the mean of a metric or parameter over the members that finished, with its 95 % interval."""
        found = [member.results for member in self.finished.values()]
        return estimate([results[name] for results in found if name in results], self.held_out)

    def minus(self, other: Setting, metric: str) -> Estimate:
        """Return the mean difference of a metric to another setting, paired by seed and fold, over those that finished in both.

        Pairing removes the effect of a seed or fold on both settings. The interval is for one comparison: it does not allow for
        the other setting having been chosen as the best of many.
        """
        others = other.finished
        pairs = [(member.metrics, others[seeds].metrics) for seeds, member in self.finished.items() if seeds in others]
        return estimate(
            [first[metric] - second[metric] for first, second in pairs if metric in first and metric in second],
            self.held_out,
        )


# ----------------------------------------------------------------------------------------------------------- collecting


def collect(sweep_dir: Path) -> Results:
    """Collect the results of a sweep, finished or not, from `sweep.json` and the summaries of its members.

    Members are compared by the metric of the search, else by the first of valid/rmse, test/rmse and train/rmse that
    exists. Raises `CheckpointError` if `sweep.json` cannot be read. A member whose summary cannot be read gets the state
    "unreadable".
    """
    sweep = read_sweep(sweep_dir)
    members = sorted((_member(sweep_dir, entry) for entry in sweep["members"]), key=lambda member: member.number)
    metric, larger_is_better = _comparison(sweep, _metrics(members))
    folds = values_of(sweep["fixed"]).get(FOLDS)
    known = folds if FOLD in sweep["swept"] and isinstance(folds, int) and folds > 1 else None
    searched = bool(sweep.get("metric"))
    return Results(sweep["name"], list(sweep["swept"]), members, metric, larger_is_better, searched, known)


def _member(sweep_dir: Path, entry: Mapping[str, Any]) -> Member:
    values = {key: _number(value) for key, value in entry["values"].items()}
    member = Member(int(entry["number"]), values, str(entry["state"]), entry.get("reason"))
    return (
        _with_summary(member, sweep_dir / str(member.number) / "summary.json") if member.state == "finished" else member
    )


def _number(value: Any) -> Any:
    """Return the value, with the texts nan, inf and -inf, which JSON has no numbers for, as floats."""
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _with_summary(member: Member, path: Path) -> Member:
    try:
        summary = read_summary(path.parent)
    except CheckpointError as error:
        return replace(member, state=UNREADABLE, reason=error.problems[0])
    if summary is None:
        reason = f"{path} must be the summary of a run, but cannot be read (No such file or directory); restore it"
        return replace(member, state=UNREADABLE, reason=reason)
    known = summary.get("converged")
    return replace(
        member,
        steps=summary["steps"],
        metrics=selected_metrics(summary),
        seconds=summary["timing"]["seconds"],
        parameters_sha256=summary["parameters_sha256"],
        parameters={f"param/{name}": value for name, value in scalar_parameters(summary).items()},
        converged=known if isinstance(known, bool) else None,
        baselines=baselines(summary),
    )


def _metrics(members: Iterable[Member]) -> list[str]:
    names = dict.fromkeys(name for member in members for name in member.metrics)
    # Sorting keeps the order of the names in which they come up, such as that of targets and of the user's own metrics.

    def order(name: str) -> tuple[int, int]:
        """Put the metric of a target, such as "test/rmse/y", below the mean over the targets."""
        part, metric = f"{name}/".split("/", 2)[:2]
        return (
            _PARTS.index(part) if part in _PARTS else len(_PARTS),
            _KNOWN.index(metric) if metric in _KNOWN else len(_KNOWN),
        )

    return sorted(names, key=order)


def _comparison(sweep: Mapping[str, Any], names: Sequence[str]) -> tuple[str, bool]:
    """Return the metric that compares members, and whether larger is better."""
    searched, directions = sweep.get("metric"), sweep.get("directions")
    searched = searched[0] if isinstance(searched, list) else searched  # the first of several objectives
    metric = searched or next((name for name in (*_MAIN, *names) if name in names), "")
    if searched and directions:
        return metric, directions[0] == "maximize"
    return metric, metric.endswith("/r2")


# --------------------------------------------------------------------------------------------------- one row per member


def write_csv(results: Results, path: Path) -> None:
    """Write one row per member, in the order of their numbers. Floats read back equal; nan and inf are written so.

    A cell without a value is empty. Raises OSError and keeps the previous file.
    """
    names, text = [*results.metrics, *results.parameters], io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    converged = ["converged"] if results.knows_convergence else []
    lines.writerow(["number", "state", *results.swept, "steps", *converged, *names, "seconds", "parameters_sha256"])
    for member in results.members:
        values = [as_text(member.values[key]) if key in member.values else "" for key in results.swept]
        found = member.results
        numbers = [found.get(name) for name in names]
        ends = [member.seconds, member.parameters_sha256]
        known = ["" if member.converged is None else as_text(member.converged)] if converged else []
        lines.writerow([member.number, member.state, *values, member.steps, *known, *numbers, *ends])
    write_atomic(path, text.getvalue().encode())


def as_text(value: Any) -> str:
    """Return a swept value as on the command line: 0.001, true, null, [8, 8], mlp."""
    if isinstance(value, str):
        return value
    return repr(value) if isinstance(value, float) else json.dumps(value)


# -------------------------------------------------------------------------------------------------- one row per setting


def settings(results: Results) -> list[Setting]:
    """Group the members by every swept key but the seeds and the fold. The best mean comes first, settings without a mean last.

    A mean is over the seeds that finished. If some failed, `minus` is the fairer comparison: it uses the common seeds.
    """
    groups: dict[str, list[Member]] = {}
    for member in results.members:
        groups.setdefault(json.dumps([member.values.get(key) for key in results.varied]), []).append(member)
    unranked = [
        Setting({key: group[0].values.get(key) for key in results.varied}, group, results.held_out)
        for group in groups.values()
    ]

    def rank(setting: Setting) -> tuple[bool, float]:
        mean = setting.estimate(results.metric).mean
        return (True, 0.0) if math.isnan(mean) else (False, -mean if results.larger_is_better else mean)

    return sorted(unranked, key=rank)


def table(results: Results) -> Table:
    """Return the table of settings, best first: seeds finished and failed, each metric, and its difference to the best."""
    from rich.table import Table
    from rich.text import Text

    ranked = settings(results)
    shown, names = _shown(results, ranked)
    remarks = "\n".join(_remarks(results, ranked, len(shown)))
    style: Any = {"title_justify": "left", "title_style": "", "caption_justify": "left", "caption_style": ""}
    result = Table(title=Text(f"{results.name}: {results.counts}"), caption=Text(remarks) if remarks else None, **style)
    result.box, result.pad_edge = None, False
    for key in results.varied:
        result.add_column(Text(key))
    comparison = ["minus best ± 95 %", "pairs"] if len(ranked) > 1 else []
    converged = ["converged"] if results.knows_convergence else []
    for heading in ("n", "failed", *converged, "metric", "mean ± 95 % interval", "sd", *comparison):
        result.add_column(heading, justify="left" if heading == "metric" else "right")
    for setting in shown:
        for row in _rows(setting, ranked[0], names or [""], results):
            result.add_row(*map(Text, row[: len(result.columns)]))
    return result


def _shown(results: Results, ranked: Sequence[Setting]) -> tuple[Sequence[Setting], Sequence[str]]:
    """Return the settings of the table, and the metrics and parameters that it has of each.

    If all of them need too many rows, the other metrics are left out first, then settings, then the parameters.
    """
    shown, parameters = ranked[:SHOWN_SETTINGS], results.parameters
    every, fewer = [*results.metrics, *parameters], [results.metric, *parameters]
    if len(shown) * len(every) <= SHOWN_ROWS:
        return shown, every
    fitting = SHOWN_ROWS // len(fewer)
    return (shown[:fitting], fewer) if fitting >= FEWEST_SETTINGS else (shown, [results.metric])


def _baselines(results: Results) -> dict[str, float]:
    """Return the mean of the compared metric over the trials for each baseline."""
    found: dict[str, list[float]] = {}
    for member in results.members:
        for name, metrics in member.baselines.items():
            if results.metric in metrics:
                found.setdefault(name, []).append(metrics[results.metric])
    return {name: estimate(values).mean for name, values in found.items()}


def _rows(setting: Setting, best: Setting, metrics: Sequence[str], results: Results) -> Iterable[list[str]]:
    """Yield a row for each metric and parameter. Only the first one names the setting."""
    converged = [f"{setting.converged:,}"] if results.knows_convergence else []
    first = [*map(_short, setting.values.values()), f"{len(setting.finished):,}", f"{setting.failed:,}", *converged]
    for metric in metrics:
        mean = setting.estimate(metric)
        difference = (
            setting.minus(best, metric) if metric == results.metric and setting is not best else Estimate(0, math.nan)
        )
        pairs = f"{difference.count:,}" if difference.count else ""
        yield [*first, metric, _spread(mean, ".6g"), _known(mean.deviation), _spread(difference, "+.4g"), pairs]
        first = [""] * len(first)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else as_text(value)


def _spread(result: Estimate, form: str) -> str:
    """Return text such as "0.25 ± 0.013": only the mean if there is no interval, and "" if there are no values."""
    half = result.high - result.mean
    return (format(result.mean, form) if result.count else "") + ("" if math.isnan(half) else f" ± {half:.2g}")


def _known(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.3g}"


def _remarks(results: Results, ranked: Sequence[Setting], shown: int) -> list[str]:
    """Return the lines below the table: baselines, settings left out, settings with one seed, and reasons of failures."""
    lines = []
    if known := _baselines(results):
        lines.append(
            f"baselines {results.metric}: " + ", ".join(f"{name} {value:.6g}" for name, value in known.items())
        )
    if results.metric.startswith("test/") and not results.searched and len(ranked) > 1:
        lines.append(
            "settings are compared on test rows, since there are no validation rows: the best one will look better than it is; "
            "use data.split.valid"
        )
    if len(ranked) > shown:
        lines.append(f"… and {len(ranked) - shown:,} more in results.csv")
    if any(len(setting.finished) == 1 for setting in ranked[:shown]):
        lines.append("n = 1: one seed has no interval")
    if results.folds is not None:
        lines.append(f"intervals over {results.folds} folds allow for the training rows that these share")
    first: dict[str, int] = {}
    for member in results.members:
        if member.failed and member.reason is not None:
            first.setdefault(member.reason, member.number)
    lines += [f"{number}: {reason}" for reason, number in first.items()][:3]
    return lines
