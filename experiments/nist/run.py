"""Fit NIST's certified regression sets by `lstsq`, `lm` and `lbfgs`, and count the correct digits.

python experiments/nist/run.py [FILE|FOLDER …] [--run-dir DIR]     sets in NIST's format; without any those in data/

Exit code: 0 if every requirement is met, 1 if one is missed, 2 if the input cannot be run.
"""

from __future__ import annotations

import argparse
import math
import secrets
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

from strd import ReferenceSet, read

from runner.config.compose import compose
from runner.config.overrides import quoted
from runner.errors import ConfigError, DataError, Diverged, RunnerError
from runner.runs.atomic import synced_together, write_atomic, write_json
from runner.training.run import execute

DATA = Path(__file__).with_name("data")

COMMON = ("name=nist", "dtype=float64", "device=cpu", "device.threads=1", "record.plots=false")
"""Overrides of every fit; on one thread, so that the digits do not depend on the number of cores."""

STEPS = {"lstsq": 10, "lm": 5_000, "lbfgs": 50}
"""Maximum number of steps: `lstsq` and `lm` end by themselves, `lbfgs` has up to 20 iterations per step."""

PRINTED = {"lstsq": 15.0, "lm": 11.0, "lbfgs": 11.0}
"""Digits that NIST prints, hence the maximum that can be correct."""

BARS = {"lm": 6.5, "lbfgs": 7.0}
"""Required digits of the worst parameter of a nonlinear set."""

LINEAR_BARS = {
    "Norris": 12.0, "Pontius": 12.0, "Longley": 11.0, "Filip": 7.0,
    "Wampler1": 9.0, "Wampler2": 12.0, "Wampler3": 9.0, "Wampler4": 8.0, "Wampler5": 6.0,
}  # fmt: skip
"""Required digits for linear sets: those of a plain QR factorisation in float64. Other sets need what conditioning allows."""

ROUNDED = 14.0
"""Highest requirement for such other sets: 2.07438016528926 has fifteen digits and a rounding error above 1 in 10¹⁵."""

ERRORS_BAR = 6.0
"""Required digits of the worst standard error by `lstsq` and `lm`."""

MAY_MISS = {"lstsq": Fraction(0), "lm": Fraction(0), "lbfgs": Fraction(2, 13)}
"""Fraction of its fits that may miss their requirement; `lbfgs` uses gradients only."""

HEADINGS = (
    "set",
    "start",
    "optimizer",
    "steps",
    "converged",
    "parameters",
    "standard errors",
    "residual sum of squares",
)
WIDTHS = (9, 5, 9, 5, 9, 10, 15, 23)


@dataclass(frozen=True)
class Fit:
    """Fit of a set by an optimizer: correct digits of worst parameter, worst standard error and sum of squares.

    Digits are None if the fit has no such number. `bar` and `errors_bar` are the required digits; `errors_bar` is None if
    standard errors are shown but not required.
    """

    name: str
    start: int | None
    optimizer: str
    steps: int | None
    converged: bool
    reason: str
    parameters: float | None
    standard_errors: float | None
    squares: float | None
    bar: float
    errors_bar: float | None

    @property
    def fault(self) -> str:
        """Description of what is wrong; empty if nothing is."""
        subject = f"{self.name}{f' from start {self.start}' if self.start else ''} by {self.optimizer}"
        if not self.converged:
            return f"{subject} did not converge: {self.reason}"
        for what, found, bar in (
            ("parameter", self.parameters, self.bar),
            ("standard error", self.standard_errors, self.errors_bar),
        ):
            if bar is not None and (found is None or found < bar):
                return f"{subject}: the worst {what} must have {bar:.1f} correct digits, got {_shown(found)}"
        return ""

    @property
    def cells(self) -> list[str]:
        """Cells of the table's row."""
        start, steps = ("–" if number is None else str(number) for number in (self.start, self.steps))
        found = map(_shown, (self.parameters, self.standard_errors, self.squares))
        return [self.name, start, self.optimizer, steps, "yes" if self.converged else "no", *found]


def _shown(number: float | None) -> str:
    return "–" if number is None else f"{number:.1f}"


# ---------------------------------------------------------------------------------------------------------------- fitting


def sets(paths: Sequence[Path]) -> list[ReferenceSet]:
    """Return the sets in files and in the .dat files of folders, linear ones first. Raises `DataError` with all problems."""
    problems = list[str]()
    found = [reference for path in paths for file in _files(path, problems) for reference in _read(file, problems)]
    problems += [
        f"each set must be given once, got {name} {count} times; remove the duplicates"
        for name, count in Counter(reference.name for reference in found).items()
        if count > 1
    ]
    if problems:
        raise DataError(problems)
    return sorted(found, key=lambda reference: not reference.linear)


def _files(path: Path, problems: list[str]) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".dat")
    if not files:
        problems.append(f"`{path}` must be a folder with .dat files, but has none; use another one")
    return files


def _read(file: Path, problems: list[str]) -> list[ReferenceSet]:
    try:
        return [read(file)]
    except DataError as error:
        problems += error.problems
        return []


def fits(reference: ReferenceSet, directory: Path) -> Iterator[Fit]:
    """Fit a linear set by `lstsq`; a nonlinear one by `lm` from each start and by `lbfgs` from the last, nearest one."""
    data = directory / "data" / f"{reference.name}.csv"
    data.parent.mkdir(exist_ok=True)
    write_atomic(data, reference.csv.encode())
    for optimizer, start in _plan(reference):
        run_dir = directory / "_".join([reference.name, optimizer, *([str(start)] if start else [])])
        overrides = [
            *COMMON, "data=csv", f"data.path={quoted(str(data))}", *reference.overrides(start),
            f"optimizer={optimizer}", f"train.steps={STEPS[optimizer]}", f"run_dir={quoted(str(run_dir))}",
        ]  # fmt: skip
        yield judged(reference, start, optimizer, summary_of(overrides))


def _plan(reference: ReferenceSet) -> list[tuple[str, int | None]]:
    """Return pairs of optimizer and start."""
    if reference.linear:
        return [("lstsq", None)]
    count = len(reference.parameters[0].starts)
    return [*(("lm", start) for start in range(1, 1 + count)), ("lbfgs", count)]


def summary_of(overrides: Sequence[str]) -> Mapping[str, Any]:
    """Return the summary of one run; a run that diverges has not converged.

    Raises `InputError`, `RunFailed` and `Interrupted`.
    """
    try:
        return execute(lambda _: compose(overrides), [*sys.argv[:1], *overrides], quiet=True).summary
    except Diverged as error:
        return {"converged": False, "not_converged_because": str(error)}


def judged(reference: ReferenceSet, start: int | None, optimizer: str, summary: Mapping[str, Any]) -> Fit:
    """Return the fit of a summary compared with the certified values."""
    most = PRINTED[optimizer]
    correct = {what: digits(found, reference.certified[what], most) for what, found in reference.found(summary).items()}
    return Fit(
        name=reference.name,
        start=start,
        optimizer=optimizer,
        steps=summary.get("steps"),
        converged=summary["converged"],
        reason=summary.get("not_converged_because", ""),
        parameters=correct.get("parameters"),
        standard_errors=correct.get("standard_errors"),
        squares=correct.get("squares"),
        bar=BARS.get(optimizer) or LINEAR_BARS.get(reference.name) or _promised(summary),
        errors_bar=ERRORS_BAR if optimizer != "lbfgs" and reference.resolved(ERRORS_BAR) else None,
    )


def _promised(summary: Mapping[str, Any]) -> float:
    """Return the digits that conditioning allows, as stated in the summary."""
    promised: float = summary.get("optimum", {}).get("digits", ROUNDED)
    return min(ROUNDED, promised)


def digits(found: Sequence[float], certified: Sequence[float], most: float) -> float:
    """Return the correct digits of the worst number, from 0 to `most`.

    It is −log₁₀ of the relative error, or of the absolute error if the certified value is 0.

    The log relative error of McCullough, "Assessing the Reliability of Statistical Software: Part I", The American
    Statistician 52 (1998).
    """
    pairs = zip(found, certified, strict=True)
    return min(_digits(abs(number - value) / (abs(value) or 1.0), most) for number, value in pairs)


def _digits(error: float, most: float) -> float:
    if not error < 1:  # nan too
        return 0.0
    return most if error == 0 else min(most, -math.log10(error))


# ------------------------------------------------------------------------------------------------------------- reporting


def line(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table with columns aligned in plain text."""
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)) + " |"


HEAD = (line(HEADINGS), line(["-" * width for width in WIDTHS]))


def missed(fitted: Sequence[Fit]) -> list[str]:
    """Return the optimizers with more faulty fits than allowed."""
    counts, faulty = Counter(fit.optimizer for fit in fitted), Counter(fit.optimizer for fit in fitted if fit.fault)
    return [optimizer for optimizer, count in counts.items() if faulty[optimizer] > MAY_MISS[optimizer] * count]


def notes(fitted: Sequence[Fit]) -> Iterator[str]:
    """Yield the notes below the table."""
    yield (
        "Digits are −log₁₀ of the relative error of the worst number, or of the absolute error if 0 is certified; at most the "
        "certified digits, 15 for lstsq and 11 for the others."
    )
    unresolved = dict.fromkeys(fit.name for fit in fitted if fit.errors_bar is None and fit.optimizer != "lbfgs")
    if unresolved:
        yield (
            f"The residuals of {', '.join(unresolved)} are at the level of rounding: their standard errors are shown, but not required."
        )
    for optimizer, count in Counter(fit.optimizer for fit in fitted).items():
        good = sum(not fit.fault for fit in fitted if fit.optimizer == optimizer)
        verdict = "; too few" if optimizer in missed(fitted) else ""
        yield f"{optimizer}: {good} of {count} fits meet their requirement{verdict}."
    yield from (f"{fit.fault}." for fit in fitted if fit.fault)


def write(directory: Path, fitted: Sequence[Fit]) -> None:
    """Write table.md and table.json."""
    rows = [line(fit.cells) for fit in fitted]
    page = "\n".join([*HEAD, *rows, "", *(f"* {note}" for note in notes(fitted)), ""])
    write_atomic(directory / "table.md", page.encode())
    entries = [{**asdict(fit), "fault": fit.fault} for fit in fitted]
    write_json(directory / "table.json", {"missed": missed(fitted), "fits": entries})


def place(run_dir: str | None) -> Path:
    """Return a new or empty directory for the runs. Raises `ConfigError`."""
    stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}"
    directory = Path("runs", "nist", stamp) if run_dir is None else Path(run_dir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        taken = any(directory.iterdir())
    except OSError as error:
        raise ConfigError(
            f"`--run-dir` must be a directory that can be created, got {directory} ({error.strerror}); use another one"
        ) from None
    if taken:
        raise ConfigError(
            f"`--run-dir` must be a new or empty directory, but {directory} is not empty; use another one"
        )
    return directory


def main() -> int:
    """Fit all sets, print each fit as it ends, and write the table."""
    parser = argparse.ArgumentParser(
        description="Fit NIST's regression sets and count the correct digits of the certified answers."
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="FILE|FOLDER",
        help="files or folders; without any the sets that come with the study",
    )
    parser.add_argument("--run-dir", help="directory for runs and table; default runs/nist/<stamp>")
    arguments = parser.parse_args()
    fitted = list[Fit]()
    try:
        references = sets(arguments.paths or [DATA])
        directory = place(arguments.run_dir)
        sys.stdout.write("\n".join([*HEAD, ""]))
        with synced_together():
            for reference in references:
                for fit in fits(reference, directory):
                    fitted.append(fit)
                    sys.stdout.write(f"{line(fit.cells)}\n")
                    sys.stdout.flush()
            write(directory, fitted)
    except RunnerError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write("\n".join(["", *notes(fitted), f"written to {directory}", ""]))
    return 1 if missed(fitted) else 0


if __name__ == "__main__":
    sys.exit(main())
