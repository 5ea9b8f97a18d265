"""Columns that people bring: values that a dtype cannot tell apart, and names that a formula cannot write as they are."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
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
    for more, remedy in (([], "dtype=float64 or data.standardize=true"), (["amp=bfloat16"], "data.standardize=true")):
        run = runner.run(None, [*linear, *more])
        assert re.search(f"{report}{remedy}\n", (run.directory / "run.log").read_text())
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
    common = ["data.target=y", "data.missing=mean", "model=mlp", "train.steps=20", "data.split.test=10", *FIT[4:]]
    hashes = {
        path: runner.run(None, [f"data={kind}", f"data.path={path}", *common]).summary["parameters_sha256"]
        for path, kind in (("t.csv", "csv"), ("t.csv.gz", "csv"), ("semicolons.csv", "csv"), ("t.parquet", "parquet"))
    }
    assert len(set(hashes.values())) == 1, hashes
