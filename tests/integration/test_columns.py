"""Columns that people bring: values that a dtype cannot tell apart, and names that a formula cannot write as they are."""

from __future__ import annotations

import csv
import gzip
import json
import re
import unicodedata
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from scipy.optimize import curve_fit

import runner
from runner.cli import main
from runner.errors import InputError

FIT = [
    "data=csv",
    "data.path=t.csv",
    "model=formula",
    "optimizer=lm",
    "device=cpu",
    "device.threads=1",
    "record.plots=false",
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _write(columns: dict[str, np.ndarray]) -> None:
    header = ",".join(columns)
    np.savetxt(
        "t.csv", np.column_stack(list(columns.values())), "%.17g", ",", header=header, comments="", encoding="utf-8"
    )


def _refused(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        runner.run(None, [*FIT, *overrides])
    return caught.value.problems


# Julian dates: a variable star


def _light_curve(days: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(7)
    time = 2_459_000 + np.sort(days * random.random(120)).round(6)
    return time, 11.3 + 0.4 * np.sin(2 * np.pi * (time - 2_459_000) / 3.2) + 0.01 * random.standard_normal(120)


STAR = [
    "data.target=mag",
    "model.expression=m+a*sin(2*pi*(jd-2459000-t0)/P)",
    "model.start={m: 11, a: 0.3, P: 3.2, t0: 0.1}",
]


def test_julian_dates_are_refused_or_reported_in_float32_and_right_in_float64() -> None:
    jd, mag = _light_curve(days=10)
    _write({"jd": jd, "mag": mag})
    (problem,) = _refused(*STAR)
    assert re.fullmatch(
        r"`dtype` must represent column 'jd', but float32 keeps only (\d+) of its 120 distinct values: 24590\S+ and 24590\S+ "
        r"become 24590\S+; use dtype=float64, or subtract an offset from the column",
        problem,
    )
    expected, _ = curve_fit(
        lambda t, m, a, t0, p: m + a * np.sin(2 * np.pi * (t - 2_459_000 - t0) / p), jd, mag, p0=(11, 0.3, 0.1, 3.2)
    )
    fitted = runner.run(None, [*FIT, *STAR, "dtype=float64"]).summary["parameters"]
    # MINPACK stops at a relative change of 1.5e-8 and lm where no step improves; t0 is 0 within its standard error of 0.003.
    assert [fitted[name] for name in ("m", "a", "P")] == pytest.approx(
        [expected[0], expected[1], expected[3]], rel=1e-6
    )
    assert fitted["t0"] == pytest.approx(expected[2], abs=1e-6)


def test_a_report_is_in_the_log_of_a_run_and_once_in_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    jd, mag = _light_curve(days=100)
    _write({"jd": jd, "mag": mag})
    # amp=bfloat16 takes float32 only, so that float64 is no advice.
    linear = [
        "data=csv",
        "data.path=t.csv",
        "data.target=mag",
        "model=linear",
        "train.steps=1",
        "optimizer.lr=1e-20",
        *FIT[4:],
    ]
    report = (
        r"`dtype` rounds column 'jd': float32 keeps only \d+ of its 120 distinct values: \S+ and \S+ become \S+; use "
    )
    for more, wider in (([], "dtype=float64"), (["amp=bfloat16"], "dtype=float64 and amp=off")):
        run = runner.run(None, [*linear, *more])
        assert re.search(f"{report}{wider}, or data.standardize=true\n", (run.directory / "run.log").read_text())
    capsys.readouterr()
    assert main(["-m", *linear, "seed=0,1,2", "run_dir=sweep"]) == 0
    printed = capsys.readouterr()
    assert len(re.findall(report, printed.out + printed.err)) == 1
    assert all(re.search(report, Path(f"sweep/{trial}/run.log").read_text()) for trial in range(3))


def test_a_target_of_tiny_units_is_refused_in_float32_and_right_when_standardized() -> None:
    x = np.linspace(0, 1, 20)
    _write({"x": x, "y": 3e-50 * x + 1e-50})
    (problem,) = _refused("data.target=y", "model.expression=a*x+b")
    assert problem == (
        "`dtype` must represent column 'y', but float32 turns 20 of its 20 distinct values into 0, such as "
        "1e-50; use dtype=float64, or use a smaller unit for the column"
    )
    for more in (["dtype=float64"], ["data.standardize=true"]):
        line: dict[str, Any] = runner.run(
            None, ["data=csv", "data.path=t.csv", "data.target=y", "optimizer=lstsq", *more, *FIT[4:]]
        ).summary
        # float32 has 6e-8 of relative rounding.
        assert line["parameters"]["weight"][0][0] == pytest.approx(3e-50, rel=1e-6)


# Names: Michaelis and Menten's rates with units in the header


def _rates(concentration: str = "[S] (uM)", rate: str = "v0 (uM/s)") -> tuple[float, float]:
    """Write a table of rates, and return scipy's V and K."""
    s = np.array([0.5, 1, 2, 5, 10, 20, 50, 100, 200])
    v = 0.004 * s / (14 + s) * (1 + 0.01 * np.random.default_rng(3).standard_normal(9))
    _write({concentration: s, rate: v})
    (most, half), _ = curve_fit(lambda s, most, half: most * s / (half + s), s, v, p0=(0.01, 10))
    return most, half


def _fitted(*overrides: str) -> tuple[float, float]:
    run = runner.run(None, [*FIT, "dtype=float64", "model.start={V: 0.01, K: 10}", *overrides])
    return run.summary["parameters"]["V"], run.summary["parameters"]["K"]


RENAME = 'data.rename={S: "[S] (uM)", rate: "v0 (uM/s)"}'
FORMULA = "model.expression=V*S/(K+S)"


@pytest.mark.parametrize(
    "overrides",
    [
        [RENAME, "data.target=rate", FORMULA],
        [RENAME, "data.target=rate", "data.features=[S]", FORMULA],
        ["data.rename.S=[S] (uM)", "data.target=v0 (uM/s)", FORMULA],
        ["data.target=v0 (uM/s)", "model.expression=V*`[S] (uM)`/(K+`[S] (uM)`)"],
        [RENAME.replace("S:", "λ:"), "data.target=rate", FORMULA.replace("S", "λ")],
        [RENAME.replace("S:", "lambda:"), "data.target=rate", FORMULA.replace("S", "`lambda`")],
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_of_any_name_can_be_used(overrides: list[str], kind: str) -> None:
    expected = _rates()
    if kind == "parquet":
        pq.write_table(pacsv.read_csv("t.csv"), "t.parquet")
        overrides = [*overrides, "data=parquet", "data.path=t.parquet"]
    # MINPACK stops at a relative change of 1.5e-8, lm where no step improves.
    assert _fitted(*overrides) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("typed", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["Température", "时间", "तापमान"])
def test_a_name_is_the_same_in_both_forms_of_its_accents(name: str, typed: Any, written: Any) -> None:
    expected = _rates(unicodedata.normalize(written, name), "y")
    formula = unicodedata.normalize(typed, f"model.expression=V*{name}/(K+{name})")
    assert _fitted("data.target=y", formula) == pytest.approx(expected, rel=1e-6)
    assert _fitted("data.target=y", formula, unicodedata.normalize(typed, f"data.features=[{name}]")) == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ['data.rename={S: "[s] (uM)"}', "data.target=v0 (uM/s)"],
            "`data.rename.S` must name a column of 't.csv', got '[s] (uM)'; the columns are '[S] (uM)', 'v0 (uM/s)' "
            "(case and spaces matter)",
        ),
        (
            [RENAME, "data.target=v0 (uM/s)"],
            "`data.target` must use the new name of 'v0 (uM/s)'; write 'rate', as in `data.rename`",
        ),
        (
            [RENAME, "data.target=rate", "data.features=[[S] (uM)]".replace("[[S]", '["[S]').replace(")]", ')"]')],
            "`data.features` must use the new name of '[S] (uM)'; write 'S', as in `data.rename`",
        ),
        (
            ['data.rename={S: "[S] (uM)", T: "[S] (uM)"}', "data.target=v0 (uM/s)"],
            "`data.rename` must give a column one name, got S, T for '[S] (uM)'; remove all but one",
        ),
        (["data.rename={S: 3}", "data.target=v0 (uM/s)"], "`data.rename` must be a mapping from names to strings, got {'S': 3}; put each name in quotes"),
        (["data.rename=S", "data.target=v0 (uM/s)"], "`data.rename` must be a mapping from names to strings, got 'S'"),
    ],
)  # fmt: skip
def test_bad_new_names_are_refused(overrides: list[str], problem: str) -> None:
    _rates()
    assert _refused(*overrides, FORMULA)[0] == problem


def test_other_keys_use_the_new_names() -> None:
    expected = _rates()
    kinds = [*"ababababa"]
    lines = Path("t.csv").read_text().splitlines()
    named = [
        line + end for line, end in zip(lines, ["," + "Sort" + ",no", *(f",{kind},7" for kind in kinds)], strict=True)
    ]
    Path("t.csv").write_text("\n".join(named))
    renamed = RENAME.replace("}", ", kind: Sort, number: no}")
    chosen = ["data.target=rate", "data.drop=[number]", "data.categorical=[kind]"]
    assert _fitted(renamed, *chosen, FORMULA) == pytest.approx(expected, rel=1e-6)
    assert _refused(renamed, "data.target=rate", "data.drop=[no]", "data.categorical=[Sort]", FORMULA) == (
        "`data.drop` must use the new name of 'no'; write 'number', as in `data.rename`",
        "`data.categorical` must use the new name of 'Sort'; write 'kind', as in `data.rename`",
    )


def test_a_new_name_must_be_its_own_unless_columns_change_places() -> None:
    expected = _rates("a", "b")
    assert _refused("data.rename={b: a}", "data.target=b", "model.expression=V*b/(K+b)") == (
        "`data.rename` must give 'a' a name of its own, but 't.csv' has another column 'b'; use another name",
    )
    assert _fitted("data.rename={b: a, a: b}", "data.target=a", "model.expression=V*b/(K+b)") == pytest.approx(
        expected, rel=1e-6
    )
    assert _fitted("data.rename={a: a}", "data.target=b", "model.expression=V*a/(K+a)") == pytest.approx(
        expected, rel=1e-6
    )


def test_a_new_name_may_be_for_a_column_without_one() -> None:
    expected = _rates("", "y")
    assert _fitted("data.rename={S: ''}", "data.target=y", FORMULA) == pytest.approx(expected, rel=1e-6)


def test_a_column_called_pi_is_refused_or_right() -> None:
    random = np.random.default_rng(5)
    x, pi = np.linspace(0, 5, 30), 6 * random.random(30)
    y = 2 * x + 0.5 * pi + 1 + 0.05 * random.standard_normal(30)
    _write({"x": x, "pi": pi, "y": y})
    assert _refused("data.target=y", "model.expression=a*x+b*pi+c") == (
        "`model.expression` must not use `pi`, which is both a constant and a column of the data; "
        "write the column as `` `pi` `` in backticks, or rename it with data.rename",
    )
    expected = np.linalg.lstsq(np.column_stack([x, pi, np.ones(30)]), y, rcond=None)[0]
    for more in (["model.expression=a*x+b*`pi`+c"], ["data.rename={p: pi}", "model.expression=a*x+b*p+c"]):
        fitted = runner.run(None, [*FIT, "dtype=float64", "data.target=y", *more]).summary["parameters"]
        assert [fitted[name] for name in "abc"] == pytest.approx(list(expected), rel=1e-9)


def test_doubts_about_names_are_in_the_log() -> None:
    x = np.linspace(1, 2, 9)
    _write({"Temp": x, "time": x**2, "y": 2 * x})
    run = runner.run(None, [*FIT, "data.target=y", "model.expression=a*time+temp", "dtype=float64"])
    log = (run.directory / "run.log").read_text()
    assert (
        "note: `model.expression`: the parameter temp has nearly the name of the column 'Temp'; write Temp if the column is meant\n"
        in log
    )
    assert "note: `model.expression` does not use the column 'Temp' of the data\n" in log


# Columns of text


def test_a_table_gives_the_same_parameters_as_text_packed_text_and_parquet() -> None:
    random = np.random.default_rng(3)
    size = 60
    columns = {
        "x": random.standard_normal(size),
        "n": random.integers(0, 9, size),
        "kind": random.choice(["oak", "birch", "élan"], size),
        "part": np.where(random.random(size) < 0.1, np.nan, random.standard_normal(size)),
        "y": random.standard_normal(size),
    }
    rows = zip(*(np.where(column == column, column, "") for column in columns.values()), strict=True)  # noqa: PLR0124 - nan
    text = "\n".join(",".join(map(str, row)) for row in [list(columns), *rows])
    Path("t.csv").write_text(text, encoding="utf-8")
    Path("t.csv.gz").write_bytes(gzip.compress(text.encode()))
    Path("semicolons.csv").write_bytes(text.replace(",", ";").replace(".", ",").encode("cp1252"))
    pq.write_table(
        pa.table({name: pa.array(column, from_pandas=True) for name, column in columns.items()}), "t.parquet"
    )
    Path("tabs.tsv").write_text(text.replace(",", "\t"), encoding="utf-8")
    common = ["data.target=y", "data.missing=mean", "model=mlp", "train.steps=20", "data.split.test=10", *FIT[4:]]
    hashes = {
        path: runner.run(None, [*overrides, f"data.path={path}", *common]).summary["parameters_sha256"]
        for path, overrides in (
            ("t.csv", ["data=csv"]),
            ("t.csv.gz", ["data=csv"]),
            ("semicolons.csv", ["data=csv"]),
            ("tabs.tsv", ["data=csv", r"data.delimiter=\t"]),
            ("t.parquet", ["data=parquet"]),
        )
    }
    assert len(set(hashes.values())) == 1, hashes


NAMES = ["a=b", "x^2", "1", "kind=green", "u\u0308", "a b", '"q"', "x,z", "l\nm", ";", "NA", "-", "sep=;", "日本", "𝛼", "train/loss", "a.b", "../c", "None", "k" * 300]  # fmt: skip
TEXTS = ["a", "b", "ü b", "NA", "x\ny", "'", '"', "a,b", " a", "é", "e\u0301", "日本", "a" * 500, "#", "2024-13-01", "None"]  # fmt: skip
COLUMNS: list[tuple[pa.DataType, Callable[[np.random.Generator], object]]] = [
    (pa.float64(), lambda random: float(random.standard_normal() * 10.0 ** random.integers(-30, 30))),
    (pa.float64(), lambda random: float(random.integers(-9, 9))),
    (pa.int64(), lambda random: int(random.integers(-(2**40), 2**40))),
    (pa.int8(), lambda random: int(random.integers(0, 3))),
    (pa.bool_(), lambda random: bool(random.random() < 0.5)),
    (pa.string(), lambda random: str(random.choice(TEXTS))),
    (pa.string(), lambda random: str(random.choice(["True", "FALSE", "false"]))),
    (pa.date32(), lambda random: date.fromordinal(int(random.integers(1, 3_000_000)))),
    (pa.timestamp("us"), lambda random: datetime(2000, 1, 1) + timedelta(seconds=int(random.integers(0, 2**30)))),
]


@pytest.mark.parametrize(
    ("width", "dates"), [(1, "parts"), (4, "seconds"), (9, "parts"), (15, "seconds"), (19, "parts"), (400, "seconds")]
)
def test_any_table_gives_the_same_parameters_as_text_and_as_parquet(width: int, dates: str) -> None:
    random = np.random.default_rng(width)
    names = [*random.permutation(NAMES)[:width], *(f"column {i}" for i in range(width - len(NAMES)))]
    kinds = [COLUMNS[i] for i in random.integers(0, len(COLUMNS), width)]
    rows = [
        [make(random) if random.random() < 0.9 else None for _, make in kinds]
        for _ in range(int(random.integers(8, 30)))
    ]
    rows[0] = [make(random) for _, make in kinds]  # an empty column of text has no type
    values = list(zip(*rows, strict=True))
    target = random.standard_normal(len(rows)).tolist()
    arrays = [pa.array([None if cell == "NA" else cell for cell in column], kind) for column, (kind, _) in zip(values, kinds, strict=True)]  # fmt: skip
    pq.write_table(pa.table([*arrays, pa.array(target)], names=[*names, "target"]), "t.parquet")
    with open("t.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[*names, "target"], *([*row, y] for row, y in zip(rows, target, strict=True))])
    common = ["data.target=target", "data.missing=mean", f"data.dates={dates}", "data.standardize=true", "model=linear"]
    common += ["train.steps=3", "data.split.test=2", "dtype=float64", "optimizer=adam", *FIT[4:]]
    text, parquet = (runner.run(None, [f"data={kind}", f"data.path=t.{kind}", *common]) for kind in ("csv", "parquet"))
    assert text.summary["parameters_sha256"] == parquet.summary["parameters_sha256"]
    features = [json.loads((run.directory / "preprocessing.json").read_text())["features"] for run in (text, parquet)]
    assert features[0] == features[1]
