"""A trained model as a graph of ONNX, with all of its preprocessing: cells of a table in, predictions in the units of the file out.

Numbers are float64 up to the inputs of the model, as in training, and again from its predictions on.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from runner.commands.export import onnx_intervals
from runner.commands.export.graph import ML, Graph, Value, concatenated
from runner.commands.export.onnx_modules import DOUBLE, INTEGER, predicted, unscaled
from runner.config import schema as c
from runner.data.encoding import CategoryEncoding, NumberEncoding
from runner.data.new_rows import Policy
from runner.data.preprocessing import Preprocessing
from runner.data.scaling import Scaling
from runner.data.transforms import BEND, EDGE, Quantile, Robust
from runner.errors import ConfigError
from runner.training.bands import Bands
from runner.training.intervals import Intervals
from runner.training.trained import Trained

TEXT = np.dtype(np.str_)


def build(members: Sequence[Trained], intervals: Intervals | Bands | None = None) -> Any:
    """Return the model of ONNX: the mean of trained models with the same features and targets, with intervals around it.

    Raises `ConfigError` with what cannot be exported.
    """
    first = members[0]
    refuse(first.config)
    fitted = first.preprocessing
    names = output_names(fitted, intervals)
    graph = Graph([*fitted.kinds, *names])
    cells = {name: graph.input(name, str if kind == "category" else np.float64) for name, kind in fitted.kinds.items()}
    inputs = [_inputs(member.preprocessing, cells, np.dtype(member.config.dtype)) for member in members]
    predictions = [_of_member(*pair) for pair in zip(members, inputs, strict=True)]
    mean = _mean(predictions)
    if Policy.of(first.config).missing != "mean":
        mean = mean.new_full((), np.nan).where(_any_missing(cells.values()), mean)
    ends = () if intervals is None else onnx_intervals.ends(intervals, first, predictions, mean, inputs[0])
    columns = [values.column(place) for values in (mean, *ends) for place in range(len(fitted.target_names))]
    for name, column in zip(names, columns, strict=True):
        graph.output(name, column)
    return graph.model({"steps": ", ".join(str(member.step) for member in members)})


def output_names(fitted: Preprocessing, intervals: Intervals | Bands | None) -> list[str]:
    """Return the names of the outputs in their order: the targets, and the ends of intervals. Raises `ConfigError`."""
    return [*fitted.target_names, *([] if intervals is None else onnx_intervals.names(fitted))]


def refuse(config: c.Config) -> None:
    """Raise `ConfigError` with what keeps a run from being exported."""
    problems = []
    if config.dtype not in ("float32", "float64"):
        problems.append(
            f"`--format onnx` must have a run with dtype=float32 or float64, got {config.dtype}, which runtimes of ONNX lack; "
            "use --format safetensors"
        )
    if config.amp != "off":
        problems.append(
            f"`--format onnx` must have a run with amp=off, got {config.amp}, whose roundings runtimes of ONNX do not repeat; "
            "use --format safetensors"
        )
    if problems:
        raise ConfigError(problems)


def _mean(values: Sequence[Value]) -> Value:
    if len(values) == 1:
        return values[0]
    return reduce(operator.add, values) / len(values)


def _any_missing(cells: Iterable[Value]) -> Value:
    """Return where a row has a missing cell, [rows, 1]."""
    return reduce(operator.or_, [c.isnan() if c.dtype == DOUBLE else c == c.graph.constant("", TEXT) for c in cells])


def _of_member(member: Trained, inputs: Sequence[Value]) -> Value:
    """Return the predictions of one model in the units of the file, float64 [rows, targets]."""
    return unscaled(member.preprocessing.scaling, predicted(member.model(), *inputs).to(DOUBLE))


# -------------------------------------------------------------------------------------------------------- preprocessing


def _inputs(fitted: Preprocessing, cells: Mapping[str, Value], dtype: np.dtype[Any]) -> list[Value]:
    """Return the inputs of the model: numbers [rows, columns] and codes of categories [rows, columns], as far as it has them."""
    numbers, codes = list[Value](), list[Value]()
    for place, encoding in fitted.encoding.placed():
        cell = cells[encoding.column]
        if isinstance(encoding, NumberEncoding):
            numbers += [part.to(dtype) for part in _number(encoding, place, fitted.scaling, cell)]
        elif encoding.coded:
            codes.append(_places(encoding, cell) + 1)
        elif encoding.values:
            columns = cell.graph.constant([range(len(encoding.values))], INTEGER)
            numbers.append((_places(encoding, cell) == columns).to(dtype))
    return [concatenated(parts) for parts in (numbers, codes) if parts]


def _number(encoding: NumberEncoding, place: int, scaling: Scaling, cell: Value) -> list[Value]:
    """Return the column of a number, and where it is missing if there is a column for that."""
    missing = cell.isnan()
    number = date_part(cell, encoding.kind)
    filled = number.new_full((), encoding.mean).where(missing, number)
    scaled = (_transformed(encoding, filled) - float(scaling.feature_mean[place])) / float(scaling.feature_scale[place])
    return [scaled, missing.to(DOUBLE)] if encoding.indicated else [scaled]


def _places(encoding: CategoryEncoding, cell: Value) -> Value:
    """Return the place of each value among those of the training rows; -1 for one that is missing or new."""
    places = encoding.spellings
    return cell.node(
        "LabelEncoder",
        dtype=INTEGER,
        domain=ML,
        keys_strings=list(places),
        values_int64s=list(places.values()),
        default_int64=-1,
    )


def _transformed(encoding: NumberEncoding, number: Value) -> Value:
    transform = encoding.transform
    if isinstance(transform, Robust):
        # Beyond these bounds, which are bent to the same value, the square would overflow.
        scaled = ((number - transform.median) / transform.scale).clamp(-1e100, 1e100)
        return scaled / (1 + (scaled / BEND) * (scaled / BEND)).sqrt()
    if isinstance(transform, Quantile):
        return normal_quantile(rank(transform, number).clamp(EDGE, 1 - EDGE))
    return number


def rank(transform: Quantile, number: Value) -> Value:
    """Return the probability [rows, 1] of values: linear between quantiles, and in the middle of those that are equal to it."""
    graph, count = number.graph, len(transform.quantiles)
    quantiles = graph.constant([transform.quantiles], DOUBLE)

    def counted(mask: Value) -> Value:
        return mask.to(INTEGER).node("ReduceSum", graph.constant([1], INTEGER), keepdims=1)

    def at(table: Any, place: Value) -> Value:
        return graph.constant(table, DOUBLE).node("Gather", place)

    # The quantiles around a value; those that are equal to it, from the last to the first of them.
    lower = (counted(quantiles <= number) - 1).clamp(min=0)
    upper = counted(quantiles < number).clamp(max=count - 1)
    low, high = at(transform.quantiles, lower), at(transform.quantiles, upper)
    probabilities = np.linspace(0, 1, count)
    start, end = at(probabilities, lower), at(probabilities, upper)
    same = low == high
    share = number.new_full((), 0.5).where(same, (number - low) / (high - low).new_full((), 1).where(same, high - low))
    return start + share * (end - start)


_CENTRE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457, 13731.693765509461125,
     1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852854561, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867, 5394.1960214247511077,
     687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_TAIL = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
     3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
     0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)  # fmt: skip


def normal_quantile(probability: Value) -> Value:
    """Return the quantiles of the normal distribution at probabilities from 1e-11 to 1 − 1e-11.

    Wichura, "Algorithm AS 241: The Percentage Points of the Normal Distribution", Applied Statistics 37 (1988) 477-484,
    with an error of 1e-16 relative. ONNX has no such operator.
    """
    centred = probability - 0.5
    inner = 0.180625 - centred * centred
    distance = (-probability.minimum(1 - probability).log()).sqrt() - 1.6
    tail = _ratio(_TAIL, distance) * centred.sign()
    return (centred * _ratio(_CENTRE, inner)).where(abs(centred) <= 0.425, tail)


def _ratio(polynomials: tuple[tuple[float, ...], tuple[float, ...]], value: Value) -> Value:
    """Return the ratio of two polynomials, whose coefficients begin with that of the highest power."""
    results = []
    for first, *others in polynomials:
        result = value.new_full((), first)
        for coefficient in others:
            result = result * value + coefficient
        results.append(result)
    return results[0] / results[1]


def date_part(seconds: Value, kind: str) -> Value:
    """Return a part of a date, such as its year, for seconds since 1970; other numbers as they are.

    The calendar from the number of days: Richards, "Calendars", in Explanatory Supplement to the Astronomical Almanac, 3rd ed.,
    2013, section 15.11, with years that begin in March, so that the leap day is the last one.
    """
    if kind in ("number", "date"):
        return seconds
    hours = (seconds / 3600).floor()
    days = (hours / 24).floor()
    if kind == "hour":
        return hours - days * 24
    if kind == "weekday":
        return days + 3 - ((days + 3) / 7).floor() * 7
    since = days + 719468  # since the first of March of the year 0
    era = (since / 146097).floor()  # of 400 years
    day = since - era * 146097
    year = ((day - (day / 1460).floor() + (day / 36524).floor() - (day / 146096).floor()) / 365).floor()
    in_year = day - (year * 365 + (year / 4).floor() - (year / 100).floor())
    month = ((in_year * 5 + 2) / 153).floor()  # 0 is March
    if kind == "day":
        return in_year - ((month * 153 + 2) / 5).floor() + 1
    next_year = month >= 10
    if kind == "month":
        return (month - 9).where(next_year, month + 3)
    return year + era * 400 + next_year.to(DOUBLE)
