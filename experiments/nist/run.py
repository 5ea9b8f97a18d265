"""Certified answers: NIST's regression sets fitted by `lstsq`, `lm` and `lbfgs`, and how many of their digits come out right.

python experiments/nist/run.py [FILE|FOLDER …] [--run-dir DIR]     sets in NIST's format; those in data/ where none are given

Exit code: 0 every bar is met, 1 one is missed, 2 the input cannot be run.
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

WORDS = ("name=nist", "dtype=float64", "device=cpu", "device.threads=1", "record.plots=false")
"""What all fits have in common; on one thread, so that the digits are the same for any number of cores."""

STEPS = {"lstsq": 10, "lm": 5_000, "lbfgs": 50}
"""Most steps: `lstsq` and `lm` end by themselves, `lbfgs` has up to 20 iterations in each."""

PRINTED = {"lstsq": 15.0, "lm": 11.0, "lbfgs": 11.0}
"""Digits that NIST prints, and so the most that can be right."""

BARS = {"lm": 6.5, "lbfgs": 7.0}
"""Digits that the worst parameter of a nonlinear set must have."""

LINEAR_BARS = {
    "Norris": 12.0, "Pontius": 12.0, "Longley": 11.0, "Filip": 7.0,
    "Wampler1": 9.0, "Wampler2": 12.0, "Wampler3": 9.0, "Wampler4": 8.0, "Wampler5": 6.0,
}  # fmt: skip
"""The same for linear sets, which is what a plain QR factorisation in float64 gives; for others what their conditioning leaves."""

ROUNDED = 14.0
"""The highest bar for one of those others: 2.07438016528926 has fifteen digits, and is rounded by more than 1 in 10¹⁵."""

ERRORS_BAR = 6.0
"""Digits that the worst standard error must have by `lstsq` and `lm`."""

MAY_MISS = {"lstsq": Fraction(0), "lm": Fraction(0), "lbfgs": Fraction(2, 13)}
"""Share of its fits that may miss their bar; `lbfgs` knows no more than the gradient."""

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
    """A set fitted by an optimizer: right digits of the worst parameter, of the worst standard error, of the sum of squares.

    Digits are None where the fit has no such number, and `errors_bar` where standard errors are shown but not judged.
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
        """What is wrong with it, as a sentence; empty where nothing is."""
        subject = f"{self.name}{f' from start {self.start}' if self.start else ''} by {self.optimizer}"
        if not self.converged:
            return f"{subject} did not converge: {self.reason}"
        for what, found, bar in (
            ("parameter", self.parameters, self.bar),
            ("standard error", self.standard_errors, self.errors_bar),
        ):
            if bar is not None and (found is None or found < bar):
                return f"{subject}: the worst {what} must have {bar:.1f} right digits, but has {_shown(found)}"
        return ""

    @property
    def cells(self) -> list[str]:
        start, steps = ("–" if number is None else str(number) for number in (self.start, self.steps))
        found = map(_shown, (self.parameters, self.standard_errors, self.squares))
        return [self.name, start, self.optimizer, steps, "yes" if self.converged else "no", *found]


def _shown(number: float | None) -> str:
    return "–" if number is None else f"{number:.1f}"


# ---------------------------------------------------------------------------------------------------------------- fitting


def sets(paths: Sequence[Path]) -> list[ReferenceSet]:
    """The sets in files and in the .dat files of folders, linear ones first. Raises `DataError` with all that cannot be read."""
    problems = list[str]()
    found = [reference for path in paths for file in _files(path, problems) for reference in _read(file, problems)]
    problems += [
        f"a set must be given once, but {name} is given {count} times; leave the others out"
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
        problems.append(f"`{path}` must be a folder with sets in .dat files, but has none; give another one")
    return files


def _read(file: Path, problems: list[str]) -> list[ReferenceSet]:
    try:
        return [read(file)]
    except DataError as error:
        problems += error.problems
        return []


def fits(reference: ReferenceSet, directory: Path) -> Iterator[Fit]:
    """A linear set by `lstsq`; another by `lm` from each of its starts, and by `lbfgs` from the last one, which is the nearest."""
    data = directory / "data" / f"{reference.name}.csv"
    data.parent.mkdir(exist_ok=True)
    write_atomic(data, reference.csv.encode())
    for optimizer, start in _plan(reference):
        run_dir = directory / "_".join([reference.name, optimizer, *([str(start)] if start else [])])
        words = [
            *WORDS, "data=csv", f"data.path={quoted(str(data))}", *reference.words(start),
            f"optimizer={optimizer}", f"train.steps={STEPS[optimizer]}", f"run_dir={quoted(str(run_dir))}",
        ]  # fmt: skip
        yield judged(reference, start, optimizer, summary_of(words))


def _plan(reference: ReferenceSet) -> list[tuple[str, int | None]]:
    """Optimizers, with the start that each is given."""
    if reference.linear:
        return [("lstsq", None)]
    count = len(reference.parameters[0].starts)
    return [*(("lm", start) for start in range(1, 1 + count)), ("lbfgs", count)]


def summary_of(words: Sequence[str]) -> Mapping[str, Any]:
    """The summary of one run; of one that diverges, that it did not converge. Raises `InputError`, `RunFailed`, `Interrupted`."""
    try:
        return execute(lambda _: compose(words), [*sys.argv[:1], *words], quiet=True).summary
    except Diverged as error:
        return {"converged": False, "not_converged_because": str(error)}


def judged(reference: ReferenceSet, start: int | None, optimizer: str, summary: Mapping[str, Any]) -> Fit:
    """What a summary comes to, beside what is certified."""
    most = PRINTED[optimizer]
    right = {what: digits(found, reference.certified[what], most) for what, found in reference.found(summary).items()}
    return Fit(
        name=reference.name,
        start=start,
        optimizer=optimizer,
        steps=summary.get("steps"),
        converged=summary["converged"],
        reason=summary.get("not_converged_because", ""),
        parameters=right.get("parameters"),
        standard_errors=right.get("standard_errors"),
        squares=right.get("squares"),
        bar=BARS.get(optimizer) or LINEAR_BARS.get(reference.name) or _promised(summary),
        errors_bar=ERRORS_BAR if optimizer != "lbfgs" and reference.resolved(ERRORS_BAR) else None,
    )


def _promised(summary: Mapping[str, Any]) -> float:
    """Digits that the summary itself says the conditioning leaves."""
    promised: float = summary.get("optimum", {}).get("digits", ROUNDED)
    return min(ROUNDED, promised)


def digits(found: Sequence[float], certified: Sequence[float], most: float) -> float:
    """Right digits of the worst number, from 0 to `most`: −log₁₀ of its relative error, or of the error itself where 0 is certified.

    The log relative error of McCullough, "Assessing the Reliability of Statistical Software: Part I", The American
    Statistician 52 (1998).
    """
    pairs = zip(found, certified, strict=True)
    return min(_digits(abs(number - value) / (abs(value) or 1.0), most) for number, value in pairs)


def _digits(error: float, most: float) -> float:
    if not error < 1:  # nan too
        return 0.0
    return most if error == 0 else min(most, -math.log10(error))


# --------------------------------------------------------------------------------------------------------------- telling


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table whose columns are aligned in plain text too."""
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)) + " |"


HEAD = (line(HEADINGS), line(["-" * width for width in WIDTHS]))


def missed(fitted: Sequence[Fit]) -> list[str]:
    """The optimizers with more faulty fits than they may have."""
    counts, faulty = Counter(fit.optimizer for fit in fitted), Counter(fit.optimizer for fit in fitted if fit.fault)
    return [optimizer for optimizer, count in counts.items() if faulty[optimizer] > MAY_MISS[optimizer] * count]


def notes(fitted: Sequence[Fit]) -> Iterator[str]:
    """What is to be said under the table."""
    yield (
        "Digits are −log₁₀ of the relative error of the worst number, at most 15 by lstsq and 11 by the others, as many as are "
        "certified; of a number certified as 0, of the error itself."
    )
    unresolved = dict.fromkeys(fit.name for fit in fitted if fit.errors_bar is None and fit.optimizer != "lbfgs")
    if unresolved:
        yield (
            f"The residuals of {', '.join(unresolved)} are at the level of rounding: their standard errors are shown, not judged."
        )
    for optimizer, count in Counter(fit.optimizer for fit in fitted).items():
        good = sum(not fit.fault for fit in fitted if fit.optimizer == optimizer)
        verdict = "; too few" if optimizer in missed(fitted) else ""
        yield f"{optimizer}: {good} of {count} fits meet their bar{verdict}."
    yield from (f"{fit.fault}." for fit in fitted if fit.fault)


def write(directory: Path, fitted: Sequence[Fit]) -> None:
    """table.md and table.json."""
    rows = [line(fit.cells) for fit in fitted]
    page = "\n".join([*HEAD, *rows, "", *(f"* {note}" for note in notes(fitted)), ""])
    write_atomic(directory / "table.md", page.encode())
    entries = [{**asdict(fit), "fault": fit.fault} for fit in fitted]
    write_json(directory / "table.json", {"missed": missed(fitted), "fits": entries})


def place(run_dir: str | None) -> Path:
    """A new or empty directory for the runs. Raises `ConfigError`."""
    stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}"
    directory = Path("runs", "nist", stamp) if run_dir is None else Path(run_dir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        taken = any(directory.iterdir())
    except OSError as error:
        raise ConfigError(
            f"`--run-dir` must be a directory that can be made, but {directory} is not: {error.strerror}; give another one"
        ) from None
    if taken:
        raise ConfigError(
            f"`--run-dir` must be a new or empty directory, but {directory} holds something; give another one"
        )
    return directory


def main() -> int:
    """Fit, tell each fit as it is done, and write the table down."""
    parser = argparse.ArgumentParser(
        description="NIST's regression sets, and how many digits of their certified answers come out."
    )
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="FILE|FOLDER", help="without any: those that come with the study"
    )
    parser.add_argument("--run-dir", help="directory for the runs and the table; without it runs/nist/<stamp>")
    given = parser.parse_args()
    fitted = list[Fit]()
    try:
        references = sets(given.paths or [DATA])
        directory = place(given.run_dir)
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
