"""A dtype that makes different values of a column equal, or rounds them much, is reported or refused with a remedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from runner.data.rounding import Advised, Check, Column
from runner.errors import DataError

RANDOM = np.random.default_rng(14)
JULIAN = 2_459_000 + 60 * RANDOM.random(120)


def _advised(*arguments: str) -> Advised:
    return lambda key, value: next((a for a in arguments if a.startswith(f"{key}={value}".lower())), None)


ALL, NOTHING = _advised("dtype=float32", "dtype=float64", "data.standardize=true"), _advised()


def _report(values: Any, dtype: str = "float32", advised: Advised = ALL, **options: Any) -> tuple[str, ...]:
    """Return the warnings of one column, or the problems for which it is refused, after the word "refused"."""
    try:
        return tuple(_warnings([Column("t", np.asarray(values, dtype=np.float64), **options)], dtype, advised))
    except DataError as error:
        return ("refused", *error.problems)


def _warnings(columns: Sequence[Column], dtype: str = "float32", advised: Advised = ALL) -> list[str]:
    check = Check(dtype, advised)
    for column in columns:
        check.add(column)
    return check.warnings()


def _standardized(values: Any, dtype: str = "float32") -> tuple[str, ...]:
    column = np.asarray(values, dtype=np.float64)
    return _report(column, dtype, standardized=True, mean=float(column.mean()), scale=float(column.std()))


# Values that are equal after the cast


def test_an_offset_that_leaves_less_than_half_of_the_values_is_refused() -> None:
    assert _report(1.7e9 + 0.5 + np.arange(1000)) == (
        "refused",
        "`dtype` must represent column 't', but float32 keeps only 9 of its 1,000 distinct values: 1700000000.5 and "
        "1700000001.5 become 1700000000.0; use dtype=float64, or data.standardize=true",
    )


@pytest.mark.parametrize(
    "values",
    [
        1.7e12 + 0.5 + 1000.0 * np.arange(1000),
        45_000 + np.arange(1000) / 1440,
        [1e9 + 0.5, 1e9 + 0.6],
        2.0 + 1e-9 * np.arange(10),
    ],
    ids=["milliseconds", "minutes of a spreadsheet's days", "two values", "a fraction of 1e-9"],
)
def test_columns_of_other_units_are_refused_too(values: Any) -> None:
    assert _report(values)[0] == "refused"
    assert _report(values, "float64") == ()
    assert _standardized(values) == ()


def test_fewer_values_that_become_equal_are_reported() -> None:
    assert _report([1, 2, 3, 3.00000001]) == (
        "`dtype` rounds column 't': float32 keeps only 3 of its 4 distinct values: 3.0 and 3.00000001 become 3.0; "
        "use dtype=float64, or data.standardize=true",
    )
    kept = len(np.unique(JULIAN.astype(np.float32)))
    assert 60 < kept < 119
    assert f"float32 keeps only {kept} of its 120 distinct values: " in _report(JULIAN)[0]


# Values that become 0


def test_values_that_become_0_are_reported() -> None:
    assert _report([1.0, 2.0, 3e-50, 0.0]) == (
        "`dtype` rounds column 't': float32 turns 1 of its 4 distinct values into 0, such as 3e-50; "
        "use dtype=float64, or data.standardize=true",
    )
    assert _report([3e-50, 4e-50, 5e-50]) == (
        "refused",
        "`dtype` must represent column 't', but float32 turns 3 of its 3 distinct values into 0, such as 3e-50; "
        "use dtype=float64, or data.standardize=true",
    )
    assert _standardized([3e-50, 4e-50, 5e-50]) == ()
    assert _report([1e-50] * 5)[0].startswith("`dtype` rounds column 't': float32 turns 1 of its 1 distinct values")
    assert (
        "float16 turns 1 of its 3 distinct values into 0, such as 1e-09; use dtype=float32"
        in _report([1, 2, 1e-9], "float16")[0]
    )


def test_a_target_whose_logarithm_is_fitted_may_be_tiny() -> None:
    assert _report(1e-300 * np.exp(np.arange(10)), logarithm=True) == ()
    assert _report(1e-300 * (1 + 1e-9 * np.arange(10)), logarithm=True)[0] == "refused"


# Values that are rounded


def test_rounding_beyond_a_thousandth_of_the_distance_is_reported() -> None:
    assert _report(2_459_000.25 + 1.1 * np.arange(100)) == (
        "`dtype` rounds column 't': float32 rounds 2459105.85 to 2459105.75, where values are 1.1 apart; "
        "use dtype=float64, or data.standardize=true",
    )
    assert "float32 rounds" in _report(np.arange(2000, 2024, 1 / 365.25))[0]
    assert "where values are 3600 apart" in _report(1.5e9 + 0.5 + 3600.0 * np.arange(30_000))[0]
    assert _report(np.arange(2000, 2024, 0.25)) == ()  # exact
    assert _report(1.5e9 + 0.5 + 86400.0 * np.arange(3650)) == ()  # at most 64 of 86,400 seconds


Draw = Callable[[np.random.Generator, int], np.ndarray]
QUIET: dict[str, Draw] = {
    "uniform": lambda random, rows: random.random(rows),
    "normal": lambda random, rows: random.standard_normal(rows),
    "with long tails": lambda random, rows: random.standard_cauchy(rows).clip(-6e4, 6e4),
    "over many decades": lambda random, rows: np.exp(3 * random.standard_normal(rows)).clip(1e-3, 6e4),
    "evenly spaced": lambda random, rows: np.linspace(1, 100, rows),
    "evenly spaced decades": lambda random, rows: np.geomspace(1e-3, 1e3, rows),
}


@pytest.mark.parametrize("kind", QUIET)
@pytest.mark.parametrize("rows", [1, 30, 1000, 100_000])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_any_column_without_an_offset_loses_is_not_reported(kind: str, rows: int, dtype: str) -> None:
    assert _report(QUIET[kind](np.random.default_rng(rows), rows), dtype) == ()


def test_constants_and_doses_over_many_decades_are_not_reported() -> None:
    assert _report([0.1] * 5) == _report([2_459_000.1] * 5) == _report([0.0, *np.geomspace(1e-9, 1e-3, 7)]) == ()


def test_standardizing_removes_the_offset_before_the_cast() -> None:
    assert _standardized(JULIAN) == ()
    (warning,) = _standardized([0.0, *JULIAN])  # the offset stays where one row does not have it
    assert warning.endswith("; use dtype=float64")


# Values beyond the dtype, and integers


def _integers(values: list[float], dtype: str) -> tuple[str, ...]:
    return _report(values, dtype, integers=True)


@pytest.mark.parametrize(
    ("dtype", "exact", "lost"),
    [
        ("bfloat16", 2**8, 2**8 + 1),
        ("bfloat16", 2**8 - 1, 2**9 - 1),
        ("float16", 2**11 - 1, 2**11 + 1),
        ("float16", 65504, 65536),
        ("float32", 2**24 - 1, 2**24 + 1),
        ("float32", -(2**24) - 2, -(2**24) - 1),
        ("float32", 2**53, 2**53 - 1),
    ],
)
def test_integers_that_a_dtype_would_round_are_refused(dtype: str, exact: int, lost: int) -> None:
    assert _integers([0, 7, exact], dtype) == ()
    sufficient = "float64" if dtype == "float32" else "float32"
    assert _integers([0, exact, lost, lost], dtype) == (
        "refused",
        f"`dtype` must represent column 't', but {dtype} cannot represent the integer {lost} exactly in row 3; "
        f"use dtype={sufficient}",
    )


def test_float64_represents_all_integers_read_and_the_advised_dtype_fits_the_whole_column() -> None:
    assert _integers([2**53, -1, 2**53 - 1, 257], "float64") == ()
    assert "in row 1; use dtype=float64" in _integers([257, 2**24 + 1], "bfloat16")[1]


def test_fractions_may_be_rounded_but_must_not_overflow() -> None:
    assert _report([0.1, 16_777_217.5]) == ()
    assert _report([0.1, -1e39]) == (
        "refused",
        "`dtype` must represent column 't', but float32 cannot represent -1e+39 in row 2; use dtype=float64",
    )
    assert "cannot represent 65504.5 in row 2; use dtype=float32" in _report([0.1, 65504.5], "float16")[1]


# Several columns, and the remedies


def test_every_refused_column_is_named_and_many_warnings_are_one_line() -> None:
    columns = [Column(name, 2e9 + np.linspace(0, 1, 10)) for name in "ab"]
    with pytest.raises(DataError) as caught:
        _warnings(columns)
    assert [problem.partition(",")[0] for problem in caught.value.problems] == [
        "`dtype` must represent column 'a'",
        "`dtype` must represent column 'b'",
    ]
    warnings = _warnings([Column(name, JULIAN) for name in "abcde"])
    assert [warning.partition(":")[0] for warning in warnings[:3]] == [f"`dtype` rounds column '{n}'" for n in "abc"]
    assert warnings[3:] == ["`dtype` also rounds columns 'd', 'e'"]


@pytest.mark.parametrize(
    ("advised", "remedy"),
    [
        (ALL, "use dtype=float64, or data.standardize=true"),
        (_advised("dtype=float64"), "use dtype=float64, or subtract an offset from the column"),
        (_advised("dtype=float64 and amp=off"), "use dtype=float64 and amp=off, or subtract an offset from the column"),
        (_advised("data.standardize=true"), "use data.standardize=true"),
        (NOTHING, "subtract an offset from the column"),
    ],
)
def test_only_what_the_configuration_accepts_is_advised(advised: Advised, remedy: str) -> None:
    assert _report(JULIAN, advised=advised)[0].endswith(f"; {remedy}")


def test_other_causes_have_other_remedies() -> None:
    assert _report([1e-50, 1.0], advised=NOTHING)[0].endswith("; use a smaller unit for the column")
    assert _report([1e50, 1.0], advised=NOTHING)[1].endswith("; use a larger unit for the column")
