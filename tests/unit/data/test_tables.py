"""Tables are read to the bit, or refused with the place and the remedy."""

import csv
import hashlib
import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.data.tables import Table, read_csv, read_diabetes, read_parquet
from runner.errors import DataError

Features = tuple[str, ...] | None


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _csv(content: str | bytes, target: str = "y", features: Features = None) -> Table:
    Path("f.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    return read_csv("f.csv", target, features)


def _parquet(columns: dict[str, pa.Array], target: str = "y", features: Features = None) -> Table:
    pq.write_table(pa.table(columns), "f.parquet")
    return read_parquet("f.parquet", target, features)


def _problems(read: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read()
    return caught.value.problems


def _problem(content: str | bytes, target: str = "y", features: Features = None) -> str:
    (problem,) = _problems(lambda: _csv(content, target, features))
    return problem


# What is read


def test_values_names_and_hash() -> None:
    content = "a,y,b\n1,2,0.1\n-3,4,1e-3\n+5,6,.5\n"
    table = _csv(content)
    assert table.feature_names == ("a", "b")
    assert table.target_name == "y"
    assert table.features.dtype == table.target.dtype == np.float64
    assert table.features.tolist() == [[1, 0.1], [-3, 0.001], [5, 0.5]]
    assert table.target.tolist() == [2, 4, 6]
    assert table.integer_columns == {"a", "y"}
    assert table.sha256 == hashlib.sha256(content.encode()).hexdigest()
    assert table.warnings == ()


def test_features_are_in_the_requested_order_and_other_columns_may_be_text() -> None:
    table = _csv("name,a,b,y\nBob,1,2,3\nEve,4,5,6\nZoe,7,8,8\n", features=("b", "a"))
    assert table.feature_names == ("b", "a")
    assert table.features.tolist() == [[2, 1], [5, 4], [8, 7]]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfx,y\n1,2\n3,4\n",
        b"x,y\r\n1,2\r\n3,4\r\n",
        b"x,y\r1,2\r3,4",
        b"x,y\n1,2\n3,4\n\n \n\r\n",
        b'"x","y"\n"1","2"\n3,4\n',
        b"x,y\n 1, 2\n3 ,\t4\n",
    ],
    ids=["byte order mark", "CRLF", "CR", "blank lines at the end", "quotes", "blanks around numbers"],
)
def test_spellings_of_the_same_table(content: bytes) -> None:
    table = _csv(content)
    assert (table.feature_names, table.features.tolist(), table.target.tolist()) == (("x",), [[1], [3]], [2, 4])


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(FINITE, FINITE, FINITE), min_size=1, max_size=20))
def test_floats_come_back_with_equal_bits(rows: list[tuple[float, float, float]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([("a", "y", "b"), *rows])
    table = _csv(text.getvalue())
    got = [(a, y, b) for (a, b), y in zip(table.features.tolist(), table.target.tolist(), strict=True)]
    assert [struct.pack("<3d", *row) for row in got] == [struct.pack("<3d", *row) for row in rows]


def test_a_column_with_one_fraction_or_beyond_53_bits_is_not_an_integer_column() -> None:
    table = _csv("a,b,c,y\n1,1,1.0,1\n2,2.5,2.0,1e16\n")
    assert table.integer_columns == {"a", "c"}


# The file as a whole


@pytest.mark.parametrize(("path", "finding"), [("no.csv", "does not exist"), (".", "is a folder")])
def test_a_missing_file_is_refused(path: str, finding: str) -> None:
    (problem,) = _problems(lambda: read_csv(path, "y", None))
    assert problem.startswith(f"`data.path` must be a readable file, but {path!r} {finding}; ")


def test_devices_and_unreadable_files_are_refused() -> None:
    assert "'/dev/null' is not a regular file" in _problems(lambda: read_csv("/dev/null", "y", None))[0]
    too_long = "a" * 300
    assert "cannot be read (File name too long)" in _problems(lambda: read_csv(too_long, "y", None))[0]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf\n"])
def test_an_empty_file_is_refused(content: bytes) -> None:
    assert _problem(content) == "`data.path` must have a header and rows, but 'f.csv' is empty; use another file"


def test_a_header_without_rows_is_refused() -> None:
    assert "got a header and 0 rows in 'f.csv'" in _problem("x,y\n")


def test_a_blank_first_line_is_refused() -> None:
    assert "'f.csv' starts with a blank line; remove it" in _problem("\nx,y\n1,2\n")


@pytest.mark.parametrize("content", ["x,y\n1,2\n".encode(e) for e in ("utf-16", "utf-16-le", "utf-16-be")])
def test_utf16_is_refused(content: bytes) -> None:
    assert _problem(content) == "`data.path` must be UTF-8 text, but 'f.csv' is UTF-16 or binary; save it as UTF-8"


def test_another_encoding_is_refused() -> None:
    problem = _problem("x,y,città\n1,2,3\n1,2,è\n".encode("latin-1"), features=("x",))
    assert "line 1 of 'f.csv' has the byte 0xe0 of another encoding; save it as UTF-8" in problem
    assert "line 3 of 'f.csv' has the byte 0xe8" in _problem(b"\xef\xbb\xbfx,y\n1,2\n1,\xe8\n")


@pytest.mark.parametrize(
    ("beginning", "finding"),
    [
        (b"\x1f\x8b\x08\x00", "is compressed; unpack it first"),
        (b"PK\x03\x04", "is compressed; unpack it first (a spreadsheet: save its sheet as CSV)"),
        (b"\xd0\xcf\x11\xe0", "is a spreadsheet; save its sheet as CSV"),
        (b"PAR1\x15\x04", "is a Parquet file; read it with data=parquet"),
    ],
)
def test_other_formats_are_recognized_by_their_first_bytes(beginning: bytes, finding: str) -> None:
    assert f"must be comma-separated text, but 'f.csv' {finding}" in _problem(beginning)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.zip", "a.xlsx", "A.XLS", "a.parquet"])
def test_other_formats_are_recognized_by_their_name(name: str) -> None:
    Path(name).write_text("x,y\n1,2\n")
    (problem,) = _problems(lambda: read_csv(name, "y", None))
    assert f"must be comma-separated text, but {name!r} is " in problem


# The header


@pytest.mark.parametrize(("sign", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_other_separators_are_refused(sign: str, word: str) -> None:
    problem = _problem(f"x{sign}y\n1,5{sign}2,5\n")
    assert f"got {word} in the first line of 'f.csv', {f'x{sign}y'!r}; use commas, and decimal points" in problem


def test_a_single_column_is_refused() -> None:
    assert _problem("x y\n1 2\n") == (
        "`data.path` must have at least two columns separated by commas, got one column in the first line of 'f.csv', 'x y'; use commas"
    )


def test_a_missing_header_is_refused() -> None:
    problem = _problem("1,-2.5e3\n3,4\n")
    assert "its first line, got numbers in 'f.csv' ('1', '-2.5e3'); add a header line" in problem
    assert _csv("1,y\n3,4\n").feature_names == ("1",)


@pytest.mark.parametrize(
    ("header", "columns"),
    [("x,Y", "'Y', 'x' (case and spaces matter)"), ("x, y", "' y', 'x' (case"), ("x,z", "'x', 'z'")],
)
def test_a_missing_target_is_refused_with_the_existing_columns(header: str, columns: str) -> None:
    problem = _problem(f"{header}\n1,2\n")
    assert problem.startswith(f"`data.target` must name a column of 'f.csv', got 'y'; the columns are {columns}")


def test_the_target_is_compared_exactly() -> None:
    assert _problem("x,y\n1,2\n", target="Y ").endswith("got 'Y '; the columns are 'y', 'x' (case and spaces matter)")


def test_the_most_similar_columns_are_named_first_and_the_others_counted() -> None:
    names = [f"column{i}" for i in range(20)] + ["weight", "y"]
    problem = _problem(",".join(names) + "\n" + ",".join("1" * 22) + "\n", features=("wieght",))
    assert problem.startswith("`data.features` must name a column of 'f.csv', got 'wieght'; the columns are 'weight', ")
    assert problem.endswith(" and 12 more")


def test_all_problems_with_names_are_reported_at_once() -> None:
    problems = _problems(lambda: _csv("a,b,a\n1,2,3\n", "y", ("b", "c", "b", "y")))
    assert [p.partition(";")[0] for p in problems] == [
        "`data.path` must have distinct column names, got 'a' 2 times in 'f.csv'",
        "`data.features` must name each column once, got 'b' 2 times",
        "`data.features` must not contain the target 'y'",
        "`data.features` must name a column of 'f.csv', got 'c'",
        "`data.target` must name a column of 'f.csv', got 'y'",
    ]


def test_an_empty_list_of_features_is_refused() -> None:
    assert "`data.features` must name at least one column" in _problem("x,y\n1,2\n", features=())


def test_a_column_without_a_name_can_only_be_skipped() -> None:
    content = ",x,y\n0,1,2\n1,3,4\n"
    assert _problem(content) == "`data.features` must be set, because column 1 of 'f.csv' has no name"
    assert _csv(content, features=("x",)).features.tolist() == [[1], [3]]


# Rows


def test_rows_of_another_length_are_refused() -> None:
    problems = _problems(lambda: _csv("x,y,z\n1,2\n1,2,3\n1,2,3,4\n\n1,5,2,5,3,5\n3\n1,2,3\n"))
    assert [p.removeprefix("`data.path`: line ") for p in problems] == [
        f"{line} of 'f.csv' must have 3 fields like the header, got {finding}"
        for line, finding in (
            (2, "2; add the missing fields"),
            (4, "4; remove or quote the extra fields"),
            (5, "a blank line; remove it"),
            (6, "6; write decimals with a point, not a comma"),
            (7, "1; add the missing fields"),
        )
    ]


@pytest.mark.parametrize(
    ("content", "line"), [('x,y\n1,2\n3,"4\n5,6\n', 4), ('x,y\n"1"2,3\n', 2), ("x,y\n1," + "2" * 200_000, 2)]
)
def test_text_that_cannot_be_parsed_is_refused(content: str, line: int) -> None:
    assert f"'f.csv' cannot be parsed at line {line} (" in _problem(content)


def test_lines_are_counted_in_the_file_also_after_a_line_break_in_quotes() -> None:
    problem = _problem('name,x,y\n"a\nb",1,2\nc,oops,3\n', features=("x",))
    assert problem.startswith("`data.path`: line 4 of 'f.csv', column 'x', must be a finite number, got 'oops', text; ")


MISSING = "a missing value; remove or fill such rows first"


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        *((cell, MISSING) for cell in ("", " ", "NA", "NaN", "-nan", "null", "None", "N/A", "?")),
        *((cell, "not finite") for cell in ("inf", "-Infinity")),
        *((cell, "beyond the largest float64") for cell in ("1e400", "-1e309", "9" * 310)),
        *(
            (cell, "an integer beyond 2**53")
            for cell in ("9007199254740993", "-9007199254740993", "0" * 5000 + "1" * 17)
        ),
        ("True", "a truth value"),
        ("0x10", "hexadecimal"),
        ("5%", "a percentage"),
        ('"1,000"', "a number with a comma"),
        ('"1,5"', "a number with a comma"),
        ("1_000", "a number with underscores"),
        *((cell, "a date") for cell in ("2024-1-31", "31.01.2024", "1/2/24", "2024-01-31T12:00")),
        *(
            (cell, "text")
            for cell in (
                "abc",
                "1 2",
                "1.2.3",
                "--1",
                "e5",
                "1e",
                ".e1",
                "١",
                "1\xa0",
                "=1+1",
                "1" * 99_999 + "x",
                "1" * 100 + "%",
            )
        ),
    ],
)
def test_cells_that_are_not_numbers_are_refused(cell: str, problem: str) -> None:
    message = _problem(f"x,y\n1,2\n{cell},3\n")
    shown = cell.strip('"') if len(cell) <= 40 else cell[:40] + "…"
    place = f"`data.path`: line 3 of 'f.csv', column 'x', must be a finite number, got {shown!r}, "
    assert message.startswith(place + problem)


@pytest.mark.parametrize(
    "cell", ["9007199254740992", "-9007199254740992", "9007199254740993.0", "1e300", "1e-400", "5."]
)
def test_accepted_spellings_of_a_number(cell: str) -> None:
    for other in ("1", "1e300"):  # with a large number in the column, every cell is checked
        assert _csv(f"x,y\n{other},2\n{cell},3\n").features[1, 0] == float(cell)


def test_problems_are_reported_in_line_order_and_capped_at_ten() -> None:
    rows = "".join(f"{i},NA\nNA,{i}\n" for i in range(10)) + "1\n"
    problems = _problems(lambda: _csv("x,y\n" + rows))
    places = [(f"line {2 + i} of 'f.csv'", f"column {'yx'[i % 2]!r}") for i in range(10)]
    assert all(line in p and column in p for p, (line, column) in zip(problems, places, strict=False))
    assert len(problems) == 11
    assert problems[10] == "and 11 more problems in 'f.csv'"


def test_a_column_without_any_number_is_reported_once() -> None:
    problems = _problems(lambda: _csv("name,x,y\nBob,1,2\nEve,q,3\nZoe,5,4\n"))
    assert [p.partition(", must")[0] for p in problems] == [
        "`data.path`: line 2 of 'f.csv', column 'name' (none of its 3 values is usable)",
        "`data.path`: line 3 of 'f.csv', column 'x'",
    ]


def test_a_single_row_is_not_a_column_without_numbers() -> None:
    assert "line 2 of 'f.csv', column 'x', must be" in _problem("x,y\nNA,2\n")


def test_problems_with_names_and_rows_share_one_limit() -> None:
    problems = _problems(lambda: _csv("a,b\n" + "1\n" * 20))
    assert problems[0].startswith("`data.target` must name")
    assert [p.partition(" of ")[0] for p in problems[1:10]] == [f"`data.path`: line {line}" for line in range(2, 11)]
    assert problems[10:] == ("and 11 more problems in 'f.csv'",)


# Warnings


def test_constant_columns_and_too_few_rows_are_warned_about() -> None:
    table = _csv("a,b,y\n1,2,5\n1,3,5\n")
    assert table.warnings == (
        "`data.features`: every row has the same value in 'a', which explains nothing",
        "`data.target`: 'y' is 5.0 in every row, so r2 is undefined",
        "`data.path`: there are 2 rows for 2 features, so many models fit exactly",
    )
    assert _csv("a,b,y\n1,2,5\n2,3,6\n4,4,5\n").warnings == ()


# Parquet


def test_parquet_values_of_every_numeric_type() -> None:
    types = [pa.int8(), pa.uint8(), pa.int32(), pa.int64(), pa.uint64(), pa.float32(), pa.float64()]
    columns = {str(kind): pa.array([1, 2, 4], kind) for kind in types}
    columns["half"] = pa.array(np.array([1, 2, 4], np.float16))
    table = _parquet({**columns, "y": pa.array([0.1, 2**53, 5e-324])})
    assert table.feature_names == tuple(columns)
    assert table.features.tolist() == [[v] * 8 for v in (1, 2, 4)]
    assert table.target.tolist() == [0.1, 2**53, 5e-324]
    assert table.integer_columns == set(columns)
    assert table.sha256 == hashlib.sha256(Path("f.parquet").read_bytes()).hexdigest()
    assert table.warnings == ("`data.path`: there are 3 rows for 8 features, so many models fit exactly",)


def test_parquet_columns_are_in_the_requested_order() -> None:
    columns = {"t": pa.array(["p", "q"]), "a": pa.array([1, 2]), "a.b": pa.array([3, 4]), "y": pa.array([5, 6])}
    assert _parquet(columns, features=("a.b", "a")).features.tolist() == [[3, 1], [4, 2]]


def test_parquet_columns_that_are_not_numeric_are_refused() -> None:
    columns = {
        "flag": pa.array([True, False]),
        "text": pa.array(["1", "2"]),
        "when": pa.array([0, 1], pa.timestamp("ns")),
        "y": pa.array([1, 2]),
    }
    problems = _problems(lambda: _parquet(columns))
    assert [p.partition(";")[0] for p in problems] == [
        f"`data.path` must have numbers in column {name!r}, got type {kind} in 'f.parquet'"
        for name, kind in (("flag", "bool"), ("text", "string"), ("when", "timestamp[ns]"))
    ]


def test_parquet_values_that_are_not_finite_numbers_are_refused() -> None:
    columns = {
        "a": pa.array([1, None, 3, 4, 5]),
        "b": pa.array([1, 2, float("nan"), float("-inf"), 5.0]),
        "c": pa.array([-(2**53), 2, 3, 4, -(2**53) - 1]),
        "d": pa.array([None, 2, 3, 2**53 + 1, 5], pa.uint64()),
        "e": pa.array([None] * 5, pa.float64()),
        "y": pa.array([2**53, 2, 3, 4, 2**64 - 1], pa.uint64()),
    }
    problems = _problems(lambda: _parquet(columns))
    assert [p.removeprefix("`data.path`: row ").partition(";")[0] for p in problems] == [
        f"{row} of 'f.parquet', column {column}, must be a finite number, got {finding}"
        for row, column, finding in (
            (1, "'d'", "'None', a missing value"),
            (1, "'e' (none of its 5 values is usable)", "'None', a missing value"),
            (2, "'a'", "'None', a missing value"),
            (3, "'b'", "'nan', a missing value"),
            (4, "'b'", "'-inf', not finite"),
            (5, "'c'", "'-9007199254740993', an integer beyond 2**53, which is not exact in float64"),
            (5, "'y'", "'18446744073709551615', an integer beyond 2**53, which is not exact in float64"),
        )
    ]


def test_parquet_names_are_checked() -> None:
    columns = {"x": pa.array([1]), "Y": pa.array([2])}
    (problem,) = _problems(lambda: _parquet(columns))
    assert problem.endswith("got 'y'; the columns are 'Y', 'x' (case and spaces matter)")
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 3, ["x", "x", "y"]), "f.parquet")
    (problem,) = _problems(lambda: read_parquet("f.parquet", "y", None))
    assert "got 'x' 2 times in 'f.parquet'" in problem


def test_parquet_without_rows_is_refused() -> None:
    (problem,) = _problems(lambda: _parquet({"x": pa.array([], pa.int64()), "y": pa.array([], pa.int64())}))
    assert "got a header and 0 rows in 'f.parquet'" in problem


@pytest.mark.parametrize("cut", [slice(0), slice(0, 200), slice(0, -1), slice(4, None)])
def test_an_incomplete_parquet_file_is_refused(cut: slice) -> None:
    _parquet({"x": pa.array([1, 2]), "y": pa.array([3, 4])})
    whole = Path("f.parquet").read_bytes()
    Path("f.parquet").write_bytes(whole[cut])
    (problem,) = _problems(lambda: read_parquet("f.parquet", "y", None))
    assert problem.startswith("`data.path` must be a complete Parquet file, but 'f.parquet' cannot be read (")
    assert problem.endswith("); use data=csv for comma-separated text")


def test_a_missing_parquet_file_is_refused() -> None:
    assert "'no.parquet' does not exist" in _problems(lambda: read_parquet("no.parquet", "y", None))[0]


def test_parquet_without_pyarrow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (problem,) = _problems(lambda: read_parquet("f.parquet", "y", None))
    assert problem == '`data=parquet` needs pyarrow, which is not installed; pip install "runner[tables]"'


# Diabetes


def test_diabetes_rows_and_columns() -> None:
    table = read_diabetes()
    assert table.feature_names == ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
    assert table.target_name == "progression"
    assert table.features.shape == (442, 10)
    assert table.warnings == ()
    # First and last patient as published, the serum measurement s5 with more digits.
    assert table.features[0].tolist() == [59, 2, 32.1, 101, 157, 93.2, 38, 4, 4.8598, 87]
    assert table.target[[0, -1]].tolist() == [151, 57]
    assert table.features.sum(0)[[0, 1, 4]].tolist() == [21445, 649, 83600]  # years of age, sexes, total cholesterol
    assert table.target.sum() == 67243


def test_diabetes_has_the_published_least_squares_fit() -> None:
    table = read_diabetes()
    centred = table.features - table.features.mean(0)
    x = centred / np.sqrt((centred**2).sum(0))
    coefficients = np.linalg.lstsq(x, table.target - table.target.mean(), rcond=None)[0]
    # Efron et al. (2004) standardize the columns this way. These are the coefficients of the full least-squares solution as
    # printed by the authors' R package lars, which rounds s5 differently: hence three digits, not five.
    published = [-10.012, -239.819, 519.840, 324.390, -792.184, 476.746, 101.045, 177.064, 751.279, 67.625]
    np.testing.assert_allclose(coefficients, published, rtol=1e-3)
