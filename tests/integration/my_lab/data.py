"""Tables that the laboratory reads, and what is wrong with some."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa


class Sensor:
    """A table with numbers, dates, texts and missing values, in the form of one of the libraries."""

    def __init__(self, form: str = "pandas", rows: int = 40, shift: float = 0.0) -> None:
        self.form, self.rows, self.shift = form, rows, shift

    def columns(self) -> dict[str, Any]:
        x = np.linspace(-1, 1, self.rows)
        day = np.datetime64("2026-01-01") + (7 * np.arange(self.rows) % self.rows).astype("timedelta64[D]")
        kind = np.array(["low", "high"])[np.arange(self.rows) % 2]
        return {"x": x, "day": day, "kind": kind, "y": 2 * x + (kind == "high") + self.shift}

    def read(self) -> Any:
        columns = self.columns()
        if self.form == "pandas":
            frame = pd.DataFrame(columns)
            frame.index = frame.index + 5  # as after a selection of rows
            return frame
        return {"polars": pl.DataFrame, "pyarrow": pa.table, "mapping": dict}[self.form](columns)


class Gaps(Sensor):
    def columns(self) -> dict[str, Any]:
        columns = super().columns()
        columns["x"][3] = np.nan
        return columns


class Noisy(Sensor):
    """Another table at every call."""

    reads = 0

    def columns(self) -> dict[str, Any]:
        Noisy.reads += 1
        columns = super().columns()
        return {**columns, "y": columns["y"] + Noisy.reads}


class Series(Sensor):
    def read(self) -> Any:
        return pd.Series([1.0, 2.0, 3.0])


class Array(Sensor):
    def read(self) -> Any:
        return np.zeros((3, 2))


class Square(Sensor):
    def read(self) -> Any:
        return {"x": np.zeros((3, 2)), "y": np.zeros(3)}


class Uneven(Sensor):
    def read(self) -> Any:
        return {"x": np.zeros(3), "y": np.zeros(4)}


class Nested(Sensor):
    def read(self) -> Any:
        return pa.table({"x": [[1.0], [2.0], [3.0]], "y": [1.0, 2.0, 3.0]})


class Absent(Sensor):
    def read(self) -> Any:
        raise FileNotFoundError("no sensor")


class Writer:
    def write(self) -> None: ...
