"""Reader of NIST's Statistical Reference Datasets (StRD) for regression, in their published file format."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.expression import parse
from runner.config.overrides import quoted
from runner.errors import DataError, ExpressionError

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:E[-+]?\d+)?"
_MODEL = re.compile(r"^Model:.*?^\s*(y|log\[y\])\s*=(.*?)^\s*(?:Starting|Certified)\s", re.M | re.S | re.I)
_PARAMETER = re.compile(rf"^[ \t]*(B\d+)[ \t]*=?((?:[ \t]+{_NUMBER}){{2,}})[ \t]*$", re.M | re.I)
_SQUARES = re.compile(rf"^\s*Residual(?: Sum of Squares:|\s+\d+)\s+({_NUMBER})", re.M | re.I)
_TABLE = re.compile(r"^Data:[ \t]+([a-z]\w*(?:[ \t]+[a-z]\w*)+)[ \t]*$(.*)", re.M | re.S | re.I)


@dataclass(frozen=True)
class Parameter:
    """One parameter: certified value and standard error, and start values, which only nonlinear sets have."""

    name: str
    starts: tuple[float, ...]
    value: float
    standard_error: float


@dataclass(frozen=True)
class ReferenceSet:
    """One regression set."""

    name: str
    columns: tuple[str, ...]
    """Names of the response and its predictors."""
    rows: tuple[tuple[str, ...], ...]
    """Numbers as printed in the file."""
    formula: str
    """Right-hand side of the model, as printed in the file."""
    log_response: bool
    """Whether the formula is for the logarithm of the response."""
    parameters: tuple[Parameter, ...]
    squares: float
    """Certified residual sum of squares."""

    @property
    def linear(self) -> bool:
        """Whether the set has no start values, as linear ones do not."""
        return not self.parameters[0].starts

    @property
    def csv(self) -> str:
        """Columns and rows as comma-separated text."""
        return "".join(",".join(row) + "\n" for row in (self.columns, *self.rows))

    @property
    def expression(self) -> str:
        """Formula in the syntax of `model.expression`."""
        return self.formula.translate(str.maketrans("[]", "()")).replace("arctan", "atan")

    @property
    def degree(self) -> int:
        """Highest power in a linear set."""
        return max(map(int, re.findall(r"\*\*\s*(\d+)", self.formula)), default=1)

    @property
    def constant(self) -> tuple[Parameter, ...]:
        """Constant term of a linear set; empty if it has none."""
        return tuple(parameter for parameter in self.parameters if parameter.name.upper() == "B0")

    @property
    def slopes(self) -> tuple[Parameter, ...]:
        """All parameters except the constant."""
        return tuple(parameter for parameter in self.parameters if parameter not in self.constant)

    def overrides(self, start: int | None) -> list[str]:
        """Return the overrides for response and model. Starts count from 1; None is for a linear set."""
        response = [f"data.target={quoted(self.columns[0])}", f"data.log_target={str(self.log_response).lower()}"]
        if start is not None:
            values = ", ".join(f"{parameter.name}: {parameter.starts[start - 1]!r}" for parameter in self.parameters)
            formula = f"model.expression={quoted(self.expression)}"
            return [*response, "model=formula", formula, f"model.start={{{values}}}"]
        if self.degree > 1:
            return [*response, "model=polynomial", f"model.degree={self.degree}"]
        return [*response, "model=linear", f"model.bias={str(bool(self.constant)).lower()}"]

    @property
    def certified(self) -> dict[str, list[float]]:
        """Certified numbers by kind: parameters with the constant last, their standard errors, residual sum of squares."""
        parameters = (*self.slopes, *self.constant)
        return {
            "parameters": [parameter.value for parameter in parameters],
            "standard_errors": [parameter.standard_error for parameter in parameters],
            "squares": [self.squares],
        }

    def found(self, summary: Mapping[str, Any]) -> dict[str, list[float]]:
        """Return the same numbers of a fit, as far as its summary has them."""
        names = [parameter.name for parameter in self.parameters]
        numbers = {
            what: _flat(list(summary[what].values())) if self.linear else [summary[what][name] for name in names]
            for what in ("parameters", "standard_errors")
            if what in summary
        }
        if "parameters" in summary:
            squares = summary["degrees_of_freedom"] * summary["residual_standard_deviation"] ** 2
            numbers["squares"] = [squares]
        return numbers

    def resolved(self, digits: float) -> bool:
        """Return whether the residuals keep so many digits when the response is rounded to float64."""
        size = math.hypot(*(float(row[0]) for row in self.rows))
        return math.sqrt(self.squares) > 10**digits * sys.float_info.epsilon * size


def _flat(value: Any) -> list[float]:
    return [number for item in value for number in _flat(item)] if isinstance(value, list) else [value]


def read(path: Path) -> ReferenceSet:
    """Return the set in a file. Raises `DataError` with all problems.

    Parts are found by their headings; the line numbers that a file states for them are not used.
    """
    try:
        text = path.read_text(encoding="latin-1")
    except OSError as error:
        raise DataError(
            f"`{path}` must be a readable file, but cannot be read ({error.strerror}); use another one"
        ) from None
    model, squares, table = _MODEL.search(text), _SQUARES.search(text), _TABLE.search(text)
    parameters = tuple(_parameter(name, numbers.split()) for name, numbers in _PARAMETER.findall(text))
    if not (model and squares and table and parameters):
        parts = {"model": model, "certified parameters": parameters, "residual sum of squares": squares, "data": table}
        raise _invalid(path, [f"it has no {name}" for name, result in parts.items() if not result])
    result = ReferenceSet(
        name=path.stem,
        columns=tuple(table[1].split()),
        rows=tuple(tuple(line.split()) for line in table[2].splitlines() if line.strip()),
        formula=re.sub(r"\+\s*e$", "", " ".join(model[2].split())).strip(),
        log_response=model[1] != "y",
        parameters=parameters,
        squares=float(squares[1]),
    )
    problems = [*_miscounted(result, text), *_unsupported(result)]
    if problems:
        raise _invalid(path, problems)
    return result


def _parameter(name: str, numbers: list[str]) -> Parameter:
    *starts, value, error = map(float, numbers)
    return Parameter(name, tuple(starts), value, error)


def _invalid(path: Path, problems: list[str]) -> DataError:
    return DataError(
        f"`{path}` must be a regression set in NIST's format, but {problem}; use the file as published"
        for problem in problems
    )


def _miscounted(result: ReferenceSet, text: str) -> Iterator[str]:
    """Yield where the file does not have what it states."""
    for what, count in (("Observations", len(result.rows)), ("Parameters", len(result.parameters))):
        stated = re.search(rf"^\s*(\d+)\s+{what}?\b", text, re.M)
        if stated and int(stated[1]) != count:
            yield f"it has {count} {what.lower()} but states {stated[1]}"
    odd = next((row for row in result.rows if len(row) != len(result.columns)), None)
    if odd is not None:
        yield f"it has {len(result.columns)} columns and the row {' '.join(odd)!r}"
    if len({len(parameter.starts) for parameter in result.parameters}) > 1:
        yield "it has more numbers for one parameter than for another"


def _unsupported(result: ReferenceSet) -> Iterator[str]:
    """Yield why the runner cannot fit its model."""
    predictors = result.columns[1:]
    if result.linear:
        powers = result.degree > 1
        if len(result.slopes) != result.degree * len(predictors) or (
            powers and (len(predictors) > 1 or not result.constant)
        ):
            yield f"its model {result.formula!r} is neither a sum of its columns nor a polynomial of one column with a constant"
        return
    try:
        names = set(parse(result.expression).names) - set(predictors)
    except ExpressionError as error:
        yield f"its model cannot be read: {error}"
        return
    parameters = {parameter.name for parameter in result.parameters}
    if names != parameters:
        yield f"its model has the parameters {sorted(names)} but certified values for {sorted(parameters)}"
