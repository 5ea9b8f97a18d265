"""Compare `lm` with SciPy's `curve_fit` and with lmfit: the same problems from the same starts, in float64.

python experiments/fits/fits.py [--draws N] [--times] [--group GROUP …]

Every problem is fitted from a near, a medium and a far start; with `--draws N` from N starts of each kind. `--times` also
measures one fit and 1,000 fits of a problem of each group. Exit code: 0 if `lm` succeeds at least as often as both others
in every group, 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from problems import Problem, Values, problems
from scipy.optimize import curve_fit

import runner
from runner.config.overrides import quoted
from runner.errors import RunnerError

RIGHT = 4.0
"""Correct digits of the worst parameter of a successful fit."""

MOST = 11.0
"""Digits of the certified and of the reference values."""

EVALUATIONS = 20_000
"""Maximum number of evaluations of `curve_fit` and lmfit; their tolerances are their own."""

STEPS = 2_000
"""Maximum number of steps of `lm`."""

MANY = 1_000

COMMON = (
    "model=formula", "optimizer=lm", "dtype=float64", "device=cpu", "device.threads=1", "record.plots=false",
    "record.sinks=[jsonl]", f"record.every_steps={STEPS}", f"train.steps={STEPS}",
)  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """How a program fitted a problem from a start."""

    distance: str
    program: str
    converged: bool
    """Whether the program says so."""
    digits: float
    """Correct digits of the worst parameter; 0 if there are no parameters."""

    @property
    def success(self) -> bool:
        """Whether the fit is right, and said to be."""
        return self.converged and self.digits >= RIGHT


def digits(problem: Problem, found: Mapping[str, float], right: Mapping[str, float]) -> float:
    """Return the correct digits of the worst parameter, at most `MOST`: −log₁₀ of its relative error."""
    canonical, answer = problem.canonical(dict(found)), problem.canonical(dict(right))
    errors = [abs(canonical[name] - value) / abs(value) for name, value in answer.items()]
    if not all(error < 1 for error in errors):  # nan too
        return 0.0
    return min(MOST, -math.log10(max(*errors, 1e-300)))


# -------------------------------------------------------------------------------------------------------------- reference


def reference(problem: Problem) -> Values:
    """Return the certified parameters; without any, the least-squares solution next to the parameters that made the data.

    Gauss-Newton with residuals and central differences in extended precision, and steps in float64. The solution has more
    than 11 digits.
    """
    if problem.measured is not None:
        return dict(problem.truth)
    wide = np.longdouble
    columns, target = problem.data.astype(wide), problem.target.astype(wide)
    rough, _ = curve_fit(
        problem.function, problem.data, problem.target, list(problem.truth.values()), maxfev=EVALUATIONS
    )
    values = np.array(rough, wide)
    for _ in range(60):
        residuals = target - problem.function(columns, *values)
        jacobian = np.empty((len(target), len(values)), wide)
        for i, value in enumerate(values):
            ahead, back = values.copy(), values.copy()
            ahead[i], back[i] = value * (1 + wide(1e-6)), value * (1 - wide(1e-6))
            jacobian[:, i] = (problem.function(columns, *ahead) - problem.function(columns, *back)) / (
                ahead[i] - back[i]
            )
        scale = np.sqrt((jacobian**2).sum(0))
        step, *_ = np.linalg.lstsq((jacobian / scale).astype(np.float64), residuals.astype(np.float64))
        values = values + step / scale
    return dict(zip(problem.parameters, map(float, values), strict=True))


# --------------------------------------------------------------------------------------------------------- three programs


def by_runner(problem: Problem, starts: Sequence[Values], folder: Path) -> list[tuple[bool, Values]]:
    """Fit from all starts as one vmapped sweep."""
    directory = sweep(problem, [f"model.start={','.join(map(_written, starts))}"], folder)
    return [_outcome(directory / str(number)) for number in range(len(starts))]


def sweep(problem: Problem, overrides: Sequence[str], folder: Path) -> Path:
    """Run a sweep over the problem's data, and return its directory."""
    with contextlib.redirect_stdout(io.StringIO()):
        return runner.multirun(None, [*common(problem, folder), *overrides])[0]


def common(problem: Problem, folder: Path) -> list[str]:
    """Write the data of a problem, and return the overrides of its runs except for the start."""
    file = folder / "data.csv"
    table = np.column_stack([*problem.columns.values(), problem.target])
    lines = [[*problem.columns, "target"], *([repr(float(number)) for number in row] for row in table)]
    file.write_text("".join(",".join(line) + "\n" for line in lines))
    stamp = f"{len(list(folder.iterdir()))}"
    return [
        *COMMON, f"run_dir={quoted(str(folder / stamp))}", "data=csv", f"data.path={quoted(str(file))}", "data.target=target",
        f"model.expression={quoted(problem.expression)}",
    ]  # fmt: skip


def _written(start: Values) -> str:
    return "{" + ", ".join(f"{name}: {value!r}" for name, value in start.items()) + "}"


def _outcome(directory: Path) -> tuple[bool, Values]:
    summary = directory / "summary.json"
    if not summary.exists():
        return False, {}
    entries = json.loads(summary.read_text(encoding="utf-8"))
    return bool(entries["converged"]), {name: float(value) for name, value in entries["parameters"].items()}


def by_curve_fit(problem: Problem, starts: Sequence[Values], folder: Path) -> list[tuple[bool, Values]]:
    """Fit from each start by SciPy, which calls MINPACK."""

    def fit(start: Values) -> Values:
        found, _ = curve_fit(
            problem.function, problem.data, problem.target, list(start.values()), method="lm", maxfev=EVALUATIONS
        )
        return dict(zip(start, map(float, found), strict=True))

    return [_tried(partial(fit, start)) for start in starts]


def by_lmfit(problem: Problem, starts: Sequence[Values], folder: Path) -> list[tuple[bool, Values]]:
    """Fit from each start by lmfit."""
    import lmfit

    model = lmfit.Model(problem.function)
    (column,) = model.independent_vars

    def fit(start: Values) -> Values:
        variables = {column: problem.data}
        result = model.fit(problem.target, model.make_params(**start), max_nfev=EVALUATIONS, **variables)
        if not result.success:
            raise RuntimeError(result.message)
        return {name: float(value) for name, value in result.best_values.items()}

    return [_tried(partial(fit, start)) for start in starts]


def _tried(fit: Callable[[], Values]) -> tuple[bool, Values]:
    """Return whether a fit ended well, and its parameters."""
    try:
        return True, fit()
    except (RuntimeError, ValueError, np.linalg.LinAlgError):  # no convergence, or a value that is not finite
        return False, {}


PROGRAMS: Mapping[str, Callable[[Problem, Sequence[Values], Path], list[tuple[bool, Values]]]] = {
    "lm": by_runner,
    "curve_fit": by_curve_fit,
    "lmfit": by_lmfit,
}


def fits(problem: Problem, draws: int, folder: Path) -> Iterator[Fit]:
    """Fit a problem from all its starts by all programs."""
    right = reference(problem)
    distances, starts = zip(*problem.starts(draws), strict=True)
    for program, fit in PROGRAMS.items():
        for distance, (converged, found) in zip(distances, fit(problem, starts, folder), strict=True):
            yield Fit(distance, program, converged, digits(problem, found, right) if found else 0.0)


# ------------------------------------------------------------------------------------------------------------------ times


def seconds(work: Callable[[], Any], rounds: int = 3) -> float:
    """Return the median seconds of some work, after it was done once."""
    work()
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def times(problem: Problem, folder: Path) -> list[str]:
    """Return a row of the table of times: one fit by each program, and `MANY` fits from as many near starts."""
    (_, near), *_ = problem.starts(1)
    one = [f"{1e3 * seconds(partial(fit, problem, [near], folder)):.1f}" for fit in (_single, by_curve_fit, by_lmfit)]
    starts = [start for distance, start in problem.starts(MANY) if distance == "near"]
    many = []
    for fit in (by_runner, by_curve_fit):
        began = time.perf_counter()
        fit(problem, starts, folder)
        many.append(f"{time.perf_counter() - began:.1f}")
    return [problem.group, problem.name, *one, *many]


def _single(problem: Problem, starts: Sequence[Values], folder: Path) -> None:
    """Fit from the first start as a run of its own."""
    with contextlib.redirect_stdout(io.StringIO()):
        runner.run(None, [*common(problem, folder), f"model.start={_written(starts[0])}"])


# ----------------------------------------------------------------------------------------------------------------- tables


def line(cells: Sequence[object]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def rows(found: Mapping[str, Sequence[Fit]]) -> Iterator[list[str]]:
    """Yield a row for each group, and one for all of them."""
    everything = [fit for fits in found.values() for fit in fits]
    for group, fits in (*found.items(), ("**all**", everything)):
        count = len(fits) // len(PROGRAMS)
        by = {program: [fit for fit in fits if fit.program == program] for program in PROGRAMS}
        successes = [str(sum(fit.success for fit in mine)) for mine in by.values()]
        wrong = [str(sum(fit.converged and not fit.success for fit in mine)) for mine in by.values()]
        right = [
            f"{statistics.median([fit.digits for fit in mine if fit.success] or [0.0]):.1f}" for mine in by.values()
        ]
        yield [group, str(count), *successes, *wrong, *right]


HEADINGS = [
    "group", "fits",
    *PROGRAMS, *(f"{program} wrong" for program in PROGRAMS), *(f"{program} digits" for program in PROGRAMS),
]  # fmt: skip
TIMES = ["group", "problem", "one fit: lm ms", "curve_fit ms", "lmfit ms", f"{MANY:,} fits: lm s", "curve_fit s"]


def behind(found: Mapping[str, Sequence[Fit]]) -> list[str]:
    """Return the groups in which `lm` succeeds less often than another program; the last one is all of them together."""
    return [row[0] for row in rows(found) if int(row[2]) < max(int(row[3]), int(row[4]))]


def main() -> int:
    """Fit all problems, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1, help="starts of each distance for every problem")
    parser.add_argument("--times", action="store_true", help="also measure one fit and 1,000 fits")
    parser.add_argument("--group", action="append", help="only this group; may be repeated")
    arguments = parser.parse_args()
    chosen = [problem for problem in problems() if arguments.group is None or problem.group in arguments.group]
    found: dict[str, list[Fit]] = {}
    warnings.simplefilter("ignore")  # overflow far from the solution, and covariances that cannot be estimated
    try:
        with tempfile.TemporaryDirectory() as folder:
            for problem in chosen:
                found.setdefault(problem.group, []).extend(fits(problem, arguments.draws, Path(folder)))
            print("\n".join([line(HEADINGS), line(["---"] * len(HEADINGS)), *map(line, rows(found))]), flush=True)
            if arguments.times:
                print("\n".join(["", line(TIMES), line(["---"] * len(TIMES))]))
                for problem in {problem.group: problem for problem in reversed(chosen)}.values():
                    print(line(times(problem, Path(folder))), flush=True)
    except RunnerError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    missed = behind(found)
    print(
        "\nlm succeeds at least as often as the others "
        + (f"except in: {', '.join(missed)}" if missed else "in every group")
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
