"""What the trials of a sweep came to: one row a member, and one a setting with the spread over its seeds."""

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

from runner.errors import CheckpointError
from runner.optim.student_t import Estimate, estimate
from runner.runs.atomic import write_atomic

if TYPE_CHECKING:
    from rich.table import Table

SEEDS = ("seed", "data.seed")
"""Keys that tell the repetitions of one setting apart."""

UNREADABLE = "unreadable"
"""State of a member that finished, but whose summary is gone or damaged."""

SHOWN_SETTINGS = 20
"""Most settings in the table."""

SHOWN_ROWS = 60
"""Most rows of the table: where all metrics of the settings take more, only the one they are compared by is shown."""

_MAIN = ("valid/rmse", "test/rmse", "train/rmse")
_KNOWN = [f"{part}/{metric}" for part in ("train", "valid", "test") for metric in ("loss", "rmse", "mae", "r2")]
_NOT_FINITE = {text: float(text) for text in ("nan", "inf", "-inf")}


@dataclass(frozen=True)
class Member:
    """One trial. Only one that finished has steps, metrics, seconds of training and the SHA-256 of its parameters.

    `state` is that of `sweep.json`, or "unreadable"; `reason` is a sentence where it did not end well.
    """

    number: int
    values: Mapping[str, Any]
    state: str
    reason: str | None = None
    steps: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    parameters_sha256: str | None = None

    @property
    def failed(self) -> bool:
        return self.state in ("failed", UNREADABLE)


@dataclass(frozen=True)
class Results:
    """All trials in the order of their numbers. `metric` compares them; "" while none has finished."""

    name: str
    swept: Sequence[str]
    members: Sequence[Member]
    metric: str
    larger_is_better: bool

    @property
    def varied(self) -> list[str]:
        """The swept keys that make a setting: all but the seeds."""
        return [key for key in self.swept if key not in SEEDS]

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that members have: train, valid, test, and of each loss, rmse, mae, r2."""
        return _metrics(self.members)

    @property
    def counts(self) -> str:
        """Such as "512 trials, 3 failed"."""
        states = Counter(member.state for member in self.members if member.state != "finished")
        trials = f"{len(self.members):,} {'trial' if len(self.members) == 1 else 'trials'}"
        return ", ".join([trials, *(f"{count:,} {state}" for state, count in states.items())])


@dataclass(frozen=True)
class Setting:
    """Members that differ in nothing but their seeds."""

    values: Mapping[str, Any]
    members: Sequence[Member]

    @property
    def finished(self) -> dict[tuple[Any, ...], Member]:
        """Seeds → the member that finished with them; the first, should a sweep have run the same twice."""
        finished = [member for member in self.members if member.state == "finished"]
        return {tuple(member.values.get(key) for key in SEEDS): member for member in reversed(finished)}

    @property
    def failed(self) -> int:
        return sum(member.failed for member in self.members)

    def estimate(self, metric: str) -> Estimate:
        """The metric's mean over the seeds that finished."""
        return estimate([m.metrics[metric] for m in self.finished.values() if metric in m.metrics])

    def minus(self, other: Setting, metric: str) -> Estimate:
        """The mean difference of a metric to another setting, seed by seed, over the seeds that finished in both.

        What a seed does to both settings drops out. The interval is that of one comparison: it makes no allowance for
        the other setting having been chosen as the best of many.
        """
        others = other.finished
        pairs = [(mine.metrics, others[seeds].metrics) for seeds, mine in self.finished.items() if seeds in others]
        return estimate(
            [mine[metric] - theirs[metric] for mine, theirs in pairs if metric in mine and metric in theirs]
        )


# ----------------------------------------------------------------------------------------------------------- collecting


def collect(sweep_dir: Path) -> Results:
    """The results of a sweep, whether it has ended or not, from `sweep.json` and the summaries of its members.

    Members are compared by the metric of the search, else by the rmse of the first of valid, test and train that there
    is. Raises `CheckpointError` when `sweep.json` cannot be read; a member's summary that cannot be is its own matter.
    """
    path = sweep_dir / "sweep.json"
    try:
        sweep = json.loads(path.read_text(encoding="utf-8"))
        members = sorted((_member(sweep_dir, entry) for entry in sweep["members"]), key=lambda member: member.number)
        metric, larger_is_better = _compared(sweep, _metrics(members))
        return Results(str(sweep["name"]), [*map(str, sweep["swept"])], members, metric, larger_is_better)
    except (OSError, ValueError) as error:
        problem = f"cannot be read ({error})"
    except (KeyError, TypeError, AttributeError):
        problem = "lacks what the record of a sweep has"
    raise CheckpointError(f"{path} must be the record of a sweep, but {problem}; restore it")


def _member(sweep_dir: Path, entry: Mapping[str, Any]) -> Member:
    values = {key: _number(value) for key, value in entry["values"].items()}
    member = Member(int(entry["number"]), values, str(entry["state"]), entry.get("reason"))
    return (
        _summarised(member, sweep_dir / str(member.number) / "summary.json") if member.state == "finished" else member
    )


def _number(value: Any) -> Any:
    """A number that JSON lacks stands there as a text."""
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _summarised(member: Member, path: Path) -> Member:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        return replace(
            member,
            steps=int(summary["steps"]),
            metrics={name: float(value) for name, value in summary["metrics"].items()},
            seconds=float(summary["timing"]["seconds"]),
            parameters_sha256=str(summary["parameters_sha256"]),
        )
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        problem = "is not one"
    return replace(member, state=UNREADABLE, reason=f"{path} must be the summary of a run, but {problem}; restore it")


def _metrics(members: Iterable[Member]) -> list[str]:
    names = {name for member in members for name in member.metrics}
    return [name for name in _KNOWN if name in names] + sorted(names.difference(_KNOWN))


def _compared(sweep: Mapping[str, Any], names: Sequence[str]) -> tuple[str, bool]:
    """The metric that members are compared by, and whether larger is better."""
    given, directions = sweep.get("metric"), sweep.get("directions")
    given = given[0] if isinstance(given, list) else given  # of several objectives the first
    metric = given or next((name for name in (*_MAIN, *names) if name in names), "")
    if given and directions:
        return metric, directions[0] == "maximize"
    return metric, metric.endswith("/r2")


# ----------------------------------------------------------------------------------------------------------- one a member


def write_csv(results: Results, path: Path) -> None:
    """One row a member in the order of their numbers; numbers read back as they were, nan and inf under these names.

    A cell is empty where a member has nothing to put there. Raises OSError; the old file is then as it was.
    """
    metrics, text = results.metrics, io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["number", "state", *results.swept, "steps", *metrics, "seconds", "parameters_sha256"])
    for member in results.members:
        values = [as_text(member.values[key]) if key in member.values else "" for key in results.swept]
        numbers = [member.metrics.get(name) for name in metrics]
        ends = [member.seconds, member.parameters_sha256]
        lines.writerow([member.number, member.state, *values, member.steps, *numbers, *ends])
    write_atomic(path, text.getvalue().encode())


def as_text(value: Any) -> str:
    """A swept value as one writes it on the command line: 0.001, true, null, [8, 8], mlp."""
    if isinstance(value, str):
        return value
    return repr(value) if isinstance(value, float) else json.dumps(value)


# ---------------------------------------------------------------------------------------------------------- one a setting


def settings(results: Results) -> list[Setting]:
    """The members grouped by every swept key but the seeds: the best mean first, those without one last.

    A mean is over the seeds that finished: where some failed, `minus` compares with less favour.
    """
    groups: dict[str, list[Member]] = {}
    for member in results.members:
        groups.setdefault(json.dumps([member.values.get(key) for key in results.varied]), []).append(member)
    found = [Setting({key: group[0].values.get(key) for key in results.varied}, group) for group in groups.values()]

    def rank(setting: Setting) -> tuple[bool, float]:
        mean = setting.estimate(results.metric).mean
        return (True, 0.0) if math.isnan(mean) else (False, -mean if results.larger_is_better else mean)

    return sorted(found, key=rank)


def table(results: Results) -> Table:
    """The settings, the best first: how many seeds finished and failed, each metric, and its difference to the best."""
    from rich.table import Table
    from rich.text import Text

    ranked = settings(results)
    shown = ranked[:SHOWN_SETTINGS]
    metrics = results.metrics if len(shown) * len(results.metrics) <= SHOWN_ROWS else [results.metric]
    remarks = "\n".join(_remarks(results, ranked))
    plain: Any = {"title_justify": "left", "title_style": "", "caption_justify": "left", "caption_style": ""}
    made = Table(title=Text(f"{results.name}: {results.counts}"), caption=Text(remarks) if remarks else None, **plain)
    made.box, made.pad_edge = None, False
    for key in results.varied:
        made.add_column(Text(key))
    compared = ["minus best ± 95 %", "pairs"] if len(ranked) > 1 else []
    for heading in ("n", "failed", "metric", "mean ± 95 % interval", "sd", *compared):
        made.add_column(heading, justify="left" if heading == "metric" else "right")
    for setting in shown:
        for row in _rows(setting, ranked[0], metrics or [""], results.metric):
            made.add_row(*map(Text, row[: len(made.columns)]))
    return made


def _rows(setting: Setting, best: Setting, metrics: Sequence[str], main: str) -> Iterable[list[str]]:
    """A row for each metric; what the setting is stands in the first one."""
    first = [*map(_short, setting.values.values()), f"{len(setting.finished):,}", f"{setting.failed:,}"]
    for metric in metrics:
        found = setting.estimate(metric)
        difference = setting.minus(best, metric) if metric == main and setting is not best else Estimate(0, math.nan)
        pairs = f"{difference.count:,}" if difference.count else ""
        yield [*first, metric, _spread(found, ".6g"), _known(found.deviation), _spread(difference, "+.4g"), pairs]
        first = [""] * len(first)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else as_text(value)


def _spread(found: Estimate, form: str) -> str:
    """Such as "0.25 ± 0.013"; without an interval only the mean, and nothing of no values."""
    half = found.high - found.mean
    return (format(found.mean, form) if found.count else "") + ("" if math.isnan(half) else f" ± {half:.2g}")


def _known(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.3g}"


def _remarks(results: Results, ranked: Sequence[Setting]) -> list[str]:
    """What the rows do not say themselves."""
    lines = []
    if len(ranked) > SHOWN_SETTINGS:
        lines.append(f"… and {len(ranked) - SHOWN_SETTINGS:,} more in results.csv")
    if any(len(setting.finished) == 1 for setting in ranked[:SHOWN_SETTINGS]):
        lines.append("n = 1: one seed has no interval")
    first: dict[str, int] = {}
    for member in results.members:
        if member.failed and member.reason is not None:
            first.setdefault(member.reason, member.number)
    lines += [f"{number}: {reason}" for reason, number in first.items()][:3]
    return lines
