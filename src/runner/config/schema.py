"""Schema of the configuration: the type, bounds, unit and meaning of every key. The values are in `conf/`.

A meaning is a phrase that `explain` and docs/config.md print with the value.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import pkgutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from runner.config.expression import folded, parse, written
from runner.config.imports import Target
from runner.config.introspection import keys_where, without, without_lanes
from runner.config.parts import Part, group, key
from runner.config.versions import without_newer
from runner.errors import ExpressionError

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
METRICS = ("rmse", "mae", "r2")
"""Metrics that every run has besides its loss."""

Metric = Literal["loss", "rmse", "mae", "r2"]
Init = Literal["kaiming", "uniform", "normal", "zeros"]
CategoryCoding = Literal["one-hot", "reference", "codes"]
"""How a column of categories is encoded: a column of 0 and 1 for each value, or for each but the first, or integers."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Device of the tensors and its settings."""

    name: Literal["auto", "cpu", "cuda", "rocm", "mps", "xpu"] = key(
        "kind of device; auto uses an accelerator if one is available"
    )
    visible: tuple[int | str, ...] | None = key(
        "ordinals or UUIDs of the GPUs that the run may use; null keeps the mask of the environment",
        at_least=0,
        changes="placement",
    )
    threads: int | None = key(
        "CPU threads of one operation; null keeps torch's default", unit="threads", at_least=1, at_most=1024
    )
    matmul_precision: Literal["highest", "high", "medium"] = key(
        "precision of float32 matrix products; highest is full float32, high and medium allow TF32 or bfloat16"
    )


@dataclass(frozen=True, kw_only=True)
class Split:
    """Split of the rows into training, validation, calibration and test rows."""

    held_out: ClassVar[tuple[str, ...]] = ("test", "calibrate", "valid")
    """Parts that have a share of their own; training has the other rows."""

    test: int | float = key(
        "test rows; an integer is a number of rows, a float below 1 a fraction of all rows", unit="rows", at_least=0
    )
    valid: int | float = key(
        "validation rows; an integer is a number of rows, a float below 1 a fraction of all rows",
        unit="rows",
        at_least=0,
    )
    order: Literal["sequential", "random"] = key(
        "order before the split into train, valid, calibrate and test; sequential keeps the order of the rows, random shuffles "
        "them"
    )
    calibrate: int | float = key(
        "rows that neither train nor choose the model and have no metrics, for intervals around its predictions; an integer is "
        "a number of rows, a float below 1 a fraction of all rows",
        unit="rows",
        at_least=0,
        before=0,
    )
    column: str | None = key(
        "column that says train, valid or test for each row; it is no feature", names=True, before=None
    )
    group: str | None = key(
        "column whose values are groups of rows; the rows of a group stay in one part, and it is no feature",
        names=True,
        before=None,
    )
    stratify: bool | int = key(
        "number of bins of the target, with as many rows each, of which every part gets its share; true is 10 bins",
        at_least=2,
        before=False,
    )
    folds: int | None = key(
        "number of folds of a cross-validation, a sweep whose runs have one fold each as their validation rows; null is one run",
        at_least=2,
        before=None,
    )
    fold: int | None = key(
        "the fold, from 1, that is the validation rows of this run; a sweep over the folds sets it",
        at_least=1,
        lane=True,
        before=None,
    )

    @property
    def shares(self) -> dict[str, int | float]:
        """Share of each part that has one."""
        return {part: getattr(self, part) for part in self.held_out}

    def problems(self) -> Iterator[str]:
        """Yield the problems of shares that are no fractions, and of keys that exclude each other."""
        for part, share in self.shares.items():
            if isinstance(share, float) and not share < 1:
                yield (
                    f"`data.split.{part}` must be an integer number of rows or a fraction below 1, got {share}; "
                    "write a number of rows without a decimal point"
                )
        if self.folds is not None and self.valid:
            yield (
                f"`data.split.valid` must be 0 with `data.split.folds`, each of which is the validation rows of a run, "
                f"got {self.valid}; use data.split.valid=0"
            )
        if self.folds is None and self.fold is not None:
            yield f"`data.split.fold` must be null without `data.split.folds`, got {self.fold}; give the number of folds"
        if self.folds is not None and self.fold is not None and self.fold > self.folds:
            yield f"`data.split.fold` must be at most `data.split.folds`={self.folds}, got {self.fold}; use a smaller number"
        if self.stratify and self.group is not None:
            yield (
                "`data.split.stratify` must be false with `data.split.group`, whose groups are not divided, got "
                f"{str(self.stratify).lower()}; use data.split.stratify=false"
            )
        if self.stratify and self.order == "sequential":
            yield (
                "`data.split.order` must be random with `data.split.stratify`, which draws from each bin, got sequential; "
                "use data.split.order=random"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig(Part):
    """Data source: the rows, their split and their scaling.

    A builder takes (config, seed, report) and returns a `runner.data.tables.Table`; `report` receives lines of progress.
    """

    name: str = key("kind of data source")
    seed: int | None = key(
        "seed of data and split only; null uses the seed of the run", at_least=0, at_most=2**32 - 1, lane=True
    )
    log_target: bool = key("whether to fit log(target); rmse and mae stay in the units of the target")
    standardize: bool = key(
        "whether to scale features and target to mean 0 and standard deviation 1, computed on the training rows"
    )
    numbers: Literal["none", "standardize", "quantile", "robust"] | None = key(
        "transform of the features that are numbers, fitted to the training rows: standardize to mean 0 and standard deviation 1, "
        "quantile to the quantiles of a normal distribution, robust to interquartile ranges from the median, with a smooth clip at 3; "
        "null is standardize with data.standardize, else none",
        before=None,
    )
    target_scale: Literal["none", "standardize"] | None = key(
        "scaling of the target; null is standardize with data.standardize, else none", before=None
    )
    split: Split

    @property
    def number_transform(self) -> str:
        """Transform of the features that are numbers: `numbers`, or what `standardize` stands for."""
        return self.numbers or ("standardize" if self.standardize else "none")

    @property
    def scales_target(self) -> bool:
        """Whether the target is standardized."""
        return (self.target_scale or ("standardize" if self.standardize else "none")) == "standardize"

    @property
    def table_key(self) -> str | None:
        """Keys that decide which table is read, as JSON. Configurations with equal ones share it. None if it depends on a seed."""
        return None

    @property
    def paths(self) -> dict[str, str]:
        """Path of each file by the key that gives it. On resume and rerun it may be another one with the same content."""
        return {}

    @property
    def size_keys(self) -> tuple[str, ...]:
        """Keys that decide how much memory the data take."""
        return ("data",)

    @property
    def known_rows(self) -> int | None:
        """Number of rows, or None if it is known only when the data are read."""
        return None

    @property
    def known_columns(self) -> int | None:
        """Number of features, or None if it is known only when the data are read."""
        return None

    @property
    def known_targets(self) -> int:
        """Number of targets."""
        return 1

    @property
    def selects_features(self) -> bool:
        """Whether the user chose the features among the columns."""
        return False

    @property
    def noise_deviation(self) -> float | None:
        """Standard deviation of the noise around the true function, or None if it is not known."""
        return None

    @property
    def knows_variance(self) -> bool:
        """Whether the variance of the target is given."""
        return False

    @property
    def weighted_by(self) -> str | None:
        """Formula of the column that weights the rows; None if all rows count the same."""
        return None

    @property
    def has_columns(self) -> bool:
        """Whether `data.split` can name columns."""
        return False

    def problems(self) -> Iterator[str]:
        """Yield the problems of columns that the data do not have."""
        for name in ("column", "group") if not self.has_columns else ():
            if getattr(self.split, name) is not None:
                yield (
                    f"`data.split.{name}` must be null with `data`={self.name}, whose columns have no roles to choose, got "
                    f"{getattr(self.split, name)!r}; use data=csv or data.split.{name}=null"
                )


@dataclass(frozen=True, kw_only=True)
class _Synthetic(DataConfig):
    target_keys: ClassVar[tuple[str, ...]] = ("data.noise",)
    """Keys that decide how large the target is."""

    rows: int = key("number of rows to generate", unit="rows", at_least=1)
    start: float = key("smallest feature value", lane=True)
    stop: float = key("largest feature value", lane=True)
    noise: float = key("scale of the noise added to the target", unit="target units", at_least=0, lane=True)
    noise_distribution: Literal["normal", "uniform"] = key(
        "distribution of the noise; normal is noise·N(0, 1), uniform is noise·U(0, 1)"
    )

    @property
    def size_keys(self) -> tuple[str, ...]:
        """The number of rows."""
        return ("data.rows",)

    @property
    def known_rows(self) -> int:
        """The number of rows as configured."""
        return self.rows

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the noise, which for U(0, 1) is 1/√12 of its scale."""
        return self.noise / (math.sqrt(12) if self.noise_distribution == "uniform" else 1)

    def problems(self) -> Iterator[str]:
        """Yield the problems of columns that the data do not have, and of an empty feature range."""
        yield from super().problems()
        if not self.start < self.stop:
            yield f"`data.start` must be below `data.stop`={self.stop}, got {self.start}; use a smaller data.start"
        elif not math.isfinite(self.stop - self.start):
            yield (
                f"`data.stop` must be at most 1.8e308 above `data.start`={self.start}, the largest float64, got {self.stop}; "
                "use a smaller range"
            )


@dataclass(frozen=True, kw_only=True)
class Line(_Synthetic, name="line", builder="runner.data.synthetic:line"):
    """Rows of y = slope·x + intercept + noise. One feature is evenly spaced; several are drawn uniformly from the range."""

    target_keys = ("data.stop", "data.slope", "data.intercept", "data.noise")

    features: int = key("number of features; all have the same slope", at_least=1)
    slope: float = key("true slope", lane=True)
    intercept: float = key("true intercept", lane=True)

    @property
    def size_keys(self) -> tuple[str, ...]:
        """The numbers of rows and of features."""
        return ("data.rows", "data.features")

    @property
    def known_columns(self) -> int:
        """The number of features as configured."""
        return self.features


@dataclass(frozen=True, kw_only=True)
class Curve(_Synthetic, name="curve", builder="runner.data.synthetic:curve"):
    """Rows of y = expression + noise. One feature is evenly spaced; several are drawn uniformly from the range."""

    expression: str = key("formula of the target; its names are the features", names=True)

    @property
    def known_columns(self) -> int:
        """The number of names in the expression, which must be valid."""
        return len(parse(self.expression).names)

    def problems(self) -> Iterator[str]:
        """Yield the problems of the range and of the expression."""
        yield from super().problems()
        try:
            names = parse(self.expression).names
        except ExpressionError as error:
            yield f"`data.expression`: {error}"
            return
        if not names:
            yield "`data.expression` must have at least one name, the feature, but has none; write for example sin(x)"


_OF_READ_ROWS = ("split", "seed", "numbers", "standardize", "target_scale", "log_target", "sigma_kind")
"""Keys of a table that say what is made of its rows once they are read; of the split all but the columns that it names."""


@dataclass(frozen=True, kw_only=True)
class _OwnParts(DataConfig):
    @property
    def own_parts(self) -> dict[str, str]:
        """What gives a part rows of its own, as messages call it, by part."""
        raise NotImplementedError

    def problems(self) -> Iterator[str]:
        """Yield the problems of the keys of every source, and of parts with rows of their own and a share."""
        yield from super().problems()
        for part, giver in self.own_parts.items():
            if self.split.shares[part]:
                yield (
                    f"`data.split.{part}` must be 0 with {giver}, which has the {part} rows, got "
                    f"{self.split.shares[part]}; use data.split.{part}=0"
                )
        if "valid" in self.own_parts and self.split.folds is not None:
            yield (
                f"`data.split.folds` must be null with {self.own_parts['valid']}, which has the validation rows, got "
                f"{self.split.folds}; use data.split.folds=null"
            )


@dataclass(frozen=True, kw_only=True)
class _Files(_OwnParts):
    path: str = key("path of the file, relative to the working directory", resumable=True)
    valid_path: str | None = key(
        "path of a file with the validation rows, read like that of data.path; null takes them from there",
        resumable=True,
        before=None,
    )
    test_path: str | None = key(
        "path of a file with the test rows, read like that of data.path; null takes them from there",
        resumable=True,
        before=None,
    )

    @property
    def size_keys(self) -> tuple[str, ...]:
        """The file."""
        return ("data.path",)

    @property
    def own_paths(self) -> dict[str, str]:
        """Path of the file of each part that has its own."""
        paths = {"valid": self.valid_path, "test": self.test_path}
        return {part: path for part, path in paths.items() if path is not None}

    @property
    def paths(self) -> dict[str, str]:
        """The file, and those of the parts that have their own."""
        return {"data.path": self.path, **{f"data.{part}_path": path for part, path in self.own_paths.items()}}

    @property
    def own_parts(self) -> dict[str, str]:
        """The key of the file of each part that has its own."""
        return {part: f"`data.{part}_path`" for part in self.own_paths}


@dataclass(frozen=True, kw_only=True)
class TableConfig(DataConfig):
    """Data source whose columns have names and roles."""

    rename: dict[str, str] = key(
        "new names of columns, {new: name in the file}; the other keys use the new ones", names=True, before={}
    )
    target: str | tuple[str, ...] = key("column to predict, or a list of several", names=True)
    features: tuple[str, ...] | None = key(
        "columns to predict from; null uses all except the target and the columns of data.sigma, data.weight, data.split and data.drop",
        names=True,
    )
    sigma: str | None = key(
        "column of standard deviations of the target, in its units; each row is weighted by 1/sigma²",
        names=True,
        before=None,
    )
    sigma_kind: Literal["relative", "absolute"] = key(
        "whether data.sigma is known only up to a common factor, which the residuals then determine, or as it is",
        before="relative",
    )
    weight: str | None = key("column of weights of the rows; only their ratios count", names=True, before=None)
    drop: tuple[str, ...] = key("columns that are no features", names=True, before=())
    categorical: Literal["auto"] | tuple[str, ...] = key(
        "columns of categories; auto takes those whose cells are text or truth values", names=True, before=()
    )
    dates: Literal["seconds", "parts"] = key(
        "what a date becomes: seconds since 1970, or its parts year, month, day, weekday (Monday is 0) and hour, in UTC, without "
        "those that are equal in every row",
        before="seconds",
    )
    missing: Literal["error", "drop", "mean"] = key(
        "what is done where a value is missing: error refuses the table, drop leaves the row out, mean fills in the mean of the "
        "training rows and adds a column that says where",
        before="error",
    )
    missing_values: tuple[str, ...] = key("texts that stand for a missing value, besides the usual ones", before=())

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns to predict."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def known_targets(self) -> int:
        """Number of targets."""
        return len(self.targets)

    @property
    def knows_variance(self) -> bool:
        """Whether the variance of the target is given."""
        return self.sigma is not None and self.sigma_kind == "absolute"

    @property
    def weighted_by(self) -> str | None:
        """The column of `weight`, or 1 over the square of the column of `sigma`."""
        return self.weight if self.sigma is None else f"1/{self.sigma}²"

    @property
    def selects_features(self) -> bool:
        """Whether `data.features` is given."""
        return self.features is not None

    @property
    def has_columns(self) -> bool:
        """True: a file names its columns."""
        return True

    @property
    def table_key(self) -> str:
        """All keys but those that say what is made of a table once it has been read."""
        columns = {"split.column": self.split.column, "split.group": self.split.group}
        return json.dumps({key: value for key, value in plain(self).items() if key not in _OF_READ_ROWS} | columns)

    def problems(self) -> Iterator[str]:
        """Yield the problems of targets and new names, and of the keys that weight the rows."""
        yield from super().problems()
        yield from self._target_problems()
        if "" in self.rename:
            yield f"`data.rename` must give {self.rename['']!r} a name that is not empty; write {{name: {self.rename['']!r}}}"
        for column, count in Counter(self.rename.values()).items():
            if count > 1:
                new = ", ".join(name for name, old in self.rename.items() if old == column)
                yield f"`data.rename` must give a column one name, got {new} for {column!r}; remove all but one"
        if self.sigma is not None and self.weight is not None:
            yield (
                f"`data.weight` must be null with `data.sigma`={self.sigma!r}, got {self.weight!r}; use data.weight=null "
                "or data.sigma=null"
            )
        if self.sigma is None and self.sigma_kind == "absolute":
            yield "`data.sigma_kind` must be relative without `data.sigma`, got absolute; name the column of `data.sigma`"

    def _target_problems(self) -> Iterator[str]:
        if not self.targets:
            yield "`data.target` must name a column, got []; name one"
        for name, count in Counter(self.targets).items():
            if count > 1:
                yield f"`data.target` must name each column once, got {name!r} {count} times; remove the duplicates"
        if self.sigma is not None and len(self.targets) > 1:
            yield (
                f"`data.sigma` must be null with several targets, got {self.sigma!r}, the deviations of one; "
                "use data.weight, or name one target"
            )
        if self.split.stratify and len(self.targets) > 1:
            yield (
                "`data.split.stratify` must be false with several targets, since the bins are those of one, got "
                f"{str(self.split.stratify).lower()}; use data.split.stratify=false"
            )


@dataclass(frozen=True, kw_only=True)
class Csv(TableConfig, _Files, name="csv", builder="runner.data.tables:from_csv"):
    """A text file of rows with a delimiter. What is null here is detected from the first lines, and reported."""

    delimiter: str | None = key(
        "sign between the fields, \\t for a tab; null detects it", pattern=r'[^\n\r"]|\\t', before=","
    )
    decimal: Literal[".", ","] | None = key("decimal sign; null detects it", before=".")
    encoding: str | None = key("encoding of the text, such as utf-8 or cp1252; null detects it", before="utf-8")
    comment: str | None = key(
        "beginning of lines that are no rows; null knows only comments above the header", before=None
    )
    skip_rows: int = key("lines above the header that are left out", unit="lines", at_least=0, before=0)
    header: bool | None = key("whether the first line has the names of the columns; null detects it", before=True)


@dataclass(frozen=True, kw_only=True)
class Parquet(TableConfig, _Files, name="parquet", builder="runner.data.tables:from_parquet"):
    """A Parquet, Feather or Arrow file, or several (extra `tables`)."""


@dataclass(frozen=True, kw_only=True)
class Memory(TableConfig, _OwnParts, name="memory", builder="runner.data.tables:from_memory"):
    """A table that Python code gives: `runner.run(data=…)` or `runner.sklearn`; not for the command line."""

    offered = False

    parts: tuple[Literal["valid", "test"], ...] = key(
        "parts whose rows are a table of their own, which Python code gives too", before=()
    )

    @property
    def own_parts(self) -> dict[str, str]:
        """The argument of `runner.run` with the table of each part that has its own."""
        return {part: f'data={{"{part}": …}}' for part in self.parts}

    def problems(self) -> Iterator[str]:
        """Yield the problems of the keys of every table, and of a column of parts beside tables of parts."""
        yield from super().problems()
        if self.parts and self.split.column is not None:
            yield (
                f"`data.split.column` must be null with {self.own_parts[self.parts[0]]}, got {self.split.column!r}; "
                "give one table, or use data.split.column=null"
            )


@dataclass(frozen=True, kw_only=True)
class CustomData(TableConfig, name="custom", builder="runner.data.custom:build"):
    """A table that a class of your own reads: `read` returns one of pandas, polars or pyarrow, or a mapping from names to arrays."""

    source: str = key("class that reads the table, as package.module:Class; its package must be trusted with --trust")
    kwargs: dict[str, Any] = key("arguments of the class")

    @property
    def code(self) -> Target:
        """The class to import."""
        return Target("data.source", self.source)

    @property
    def size_keys(self) -> tuple[str, ...]:
        """The class."""
        return ("data.source",)

    def problems(self) -> Iterator[str]:
        """Yield the problems of the keys of every table, and of a class that is none."""
        yield from super().problems()
        yield from self.code.problems("my_lab.data:Sensor")


@dataclass(frozen=True, kw_only=True)
class Diabetes(DataConfig, name="diabetes", builder="runner.data.tables:from_diabetes"):
    """442 patients with ten measurements and disease progression a year later (Efron et al., 2004); part of the package."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Part):
    """Model: a function with parameters to learn.

    A builder takes (config, feature_names, target_names, generator) and returns a `runner.models.base.Model` in float64 on
    the CPU. For a model that takes codes, it also gets how many codes each column of categories has, and the features are
    the numbers alone.
    """

    identifiable: ClassVar[bool] = True
    """Whether different parameters always give different predictions. For a network they do not."""
    keeps_units: ClassVar[bool] = False
    """Whether the parameters are in the units of the data, which then must not be standardized."""
    divisible: ClassVar[bool] = True
    """Whether the parameters are tensors that can be sharded over processes."""
    records_parameters: ClassVar[bool] = False
    """Whether every row of metrics includes the parameters."""
    size_key: ClassVar[str] = "model"
    """Key that decides how many parameters there are."""
    start_key: ClassVar[str] = "seed"
    """Key that changes the start values."""

    name: str = key("kind of model")
    init_from: str | None = key(
        "directory of a finished run, or an export, whose parameters the model starts from, where they fit; null starts as the other keys say",
        before=None,
    )

    def parameter_count(self, columns: int, targets: int, cardinalities: Sequence[int] = ()) -> int:
        """Return the number of parameters for so many features and targets, or 0 for a model that does not know it.

        `cardinalities` are the numbers of codes of the categories, for a model that takes them.
        """
        return 0

    @property
    def limits(self) -> Mapping[str, tuple[float, float]]:
        """Lower and upper bound of each bounded parameter; −∞ or ∞ for one that is missing."""
        return {}

    @property
    def fixed_parameters(self) -> Mapping[str, float]:
        """Values of the parameters that are not trained."""
        return {}

    @property
    def start_values(self) -> Mapping[str, float]:
        """Start values that are given."""
        return {}

    @property
    def given_values(self) -> Mapping[str, float]:
        """Values and bounds of parameters by the key that gives them, such as `model.start.a`."""
        return {}

    @property
    def adds_constant(self) -> bool:
        """Whether the prediction is a constant plus a function of each feature by itself."""
        return False

    @property
    def draws(self) -> bool:
        """Whether the forward pass in training draws random numbers."""
        return False

    @property
    def takes_codes(self) -> bool:
        """Whether the model takes categories as codes beside the numbers; otherwise they are numbers, one-hot."""
        return False

    def wants_codes(self) -> bool:
        """Return whether the model is given codes. Unlike `takes_codes`, it may import the user's own code to find out."""
        return self.takes_codes

    def doubts(self, features: Sequence[str], others: Sequence[str], selected: bool) -> Iterator[str]:
        """Yield warnings about names that fit the columns and are probably not meant.

        `others` are the columns that are no features, the target among them. `selected` says whether the user chose the
        features.
        """
        yield from ()


@dataclass(frozen=True, kw_only=True)
class Linear(ModelConfig, name="linear", builder="runner.models.linear:linear"):
    """y = weight·x + bias."""

    bias: bool = key("whether there is a constant term")
    init: Init = key("initial parameters; kaiming is torch's default, uniform is U(0, 1), normal is N(0, 1)")

    @property
    def adds_constant(self) -> bool:
        """Whether there is a bias."""
        return self.bias


@dataclass(frozen=True, kw_only=True)
class Polynomial(ModelConfig, name="polynomial", builder="runner.models.linear:polynomial"):
    """A linear model of the powers 1 … degree of every feature."""

    size_key = "model.degree"
    adds_constant = True

    degree: int = key("highest power", at_least=1, at_most=50)
    init: Init = key("initial parameters; kaiming is torch's default, uniform is U(0, 1), normal is N(0, 1)")

    def parameter_count(self, columns: int, targets: int, cardinalities: Sequence[int] = ()) -> int:
        """Return for each target one for each power of each feature, and one."""
        return (columns * self.degree + 1) * targets


@dataclass(frozen=True, kw_only=True)
class Mlp(ModelConfig, name="mlp", builder="runner.models.mlp:build"):
    """Fully connected layers with an activation after each layer except the last."""

    identifiable = False
    size_key = "model.widths"

    widths: tuple[int, ...] = key("number of units in each hidden layer", at_least=1)
    activation: Literal["relu", "tanh", "gelu", "silu", "sigmoid"] = key("activation function after each hidden layer")
    dropout: float = key("probability that a hidden unit is set to 0 in training", at_least=0, below=1)
    embedding_size: int | None = key(
        "numbers that stand for a category, one vector for each value, trained with the network; null makes categories one-hot",
        at_least=1,
        before=None,
    )

    @property
    def draws(self) -> bool:
        """Whether there is dropout."""
        return self.dropout > 0

    @property
    def takes_codes(self) -> bool:
        """Whether there are embeddings."""
        return self.embedding_size is not None

    def problems(self) -> Iterator[str]:
        """Yield the problem of more layers than can be built and trained in a reasonable time."""
        if len(self.widths) > 1000:
            yield f"`model.widths` must have at most 1000 layers, got {len(self.widths):,}; use fewer and wider ones"

    def parameter_count(self, columns: int, targets: int, cardinalities: Sequence[int] = ()) -> int:
        """Return the weights and biases of all layers, and the vectors of the categories."""
        size = self.embedding_size or 0
        widths = (columns + size * len(cardinalities), *self.widths, targets)
        return size * sum(cardinalities) + sum((inputs + 1) * outputs for inputs, outputs in pairwise(widths))


@dataclass(frozen=True, kw_only=True)
class _OwnModel(ModelConfig):
    identifiable = False
    size_key = "model.kwargs"

    target: str
    kwargs: dict[str, Any] = key(
        "arguments of the class; in_features, out_features and cardinalities are filled in where it has them"
    )

    @property
    def title(self) -> str:
        """The class, or what Python code gave."""
        return self.target


@dataclass(frozen=True, kw_only=True)
class CustomModel(_OwnModel, name="custom", builder="runner.models.custom:build"):
    """A `torch.nn.Module` of your own: `forward` takes numbers [rows, features] and returns predictions [rows, targets]."""

    target: str = key("class of the model, as package.module:Class; its package must be trusted with --trust")

    @property
    def code(self) -> Target:
        """The class to import."""
        return Target("model.target", self.target)

    def wants_codes(self) -> bool:
        """Return whether `forward` has an argument for categories, for which the class is imported."""
        wants: bool = pkgutil.resolve_name("runner.models.custom:wants_codes")(self)
        return wants

    def problems(self) -> Iterator[str]:
        """Yield the problem of a target that is none."""
        yield from self.code.problems()


@dataclass(frozen=True, kw_only=True)
class MemoryModel(_OwnModel, name="memory", builder="runner.models.custom:from_memory"):
    """A module, class or function that Python code gives: `runner.run(model=…)`; not for the command line."""

    offered = False

    target: str = key("what Python code gave, such as __main__:Net; for the record alone")
    codes: bool = key("whether it takes the codes of categories")

    def wants_codes(self) -> bool:
        """Return `codes`: whoever passes a module knows it."""
        return self.codes


def _error_of(formula: str, fixed: Mapping[str, float]) -> ExpressionError | None:
    """Return the error of a formula with these values of parameters, or None."""
    try:
        parse(formula, fixed)
    except ExpressionError as error:
        return error
    return None


@dataclass(frozen=True, kw_only=True)
class Formula(ModelConfig, name="formula", builder="runner.models.formula:build"):
    """A formula of the data columns, or one for each target. Every other name in them is a parameter, which they share."""

    keeps_units = True
    divisible = False
    records_parameters = True
    start_key = "model.start"

    expression: str | dict[str, str] = key(
        "formula of the prediction, such as a*exp(-b*x) + c, or {target: formula} for several targets; "
        "a column whose name has blanks or signs is written in backticks",
        names=True,
    )
    start: dict[str, float] = key(
        "initial value of each parameter; the others are drawn as init says", names=True, lane=True
    )
    init: Literal["uniform", "normal", "zeros"] = key(
        "initial values of the other parameters; uniform is U(0, 1), normal is N(0, 1); one outside of its bounds is moved inside"
    )
    bounds: dict[str, tuple[float | None, float | None]] = key(
        "lower and upper bound of parameters, such as {k: [0, null]}; null is no bound", names=True, before={}
    )
    fixed: dict[str, float] = key("values of parameters that are not trained", names=True, before={})

    @property
    def formulas(self) -> dict[str, str]:
        """Formulas by the key that has them."""
        if isinstance(self.expression, str):
            return {"model.expression": self.expression}
        return {f"model.expression.{target}": text for target, text in self.expression.items()}

    def _names(self) -> tuple[str, ...]:
        """Return the names in all formulas, in order. Raises `ExpressionError`."""
        return tuple(dict.fromkeys(name for text in self.formulas.values() for name in parse(text).names))

    @property
    def limits(self) -> Mapping[str, tuple[float, float]]:
        """Bounds as numbers, without the pairs that have none."""
        return {
            name: (-math.inf if low is None else low, math.inf if high is None else high)
            for name, (low, high) in self.bounds.items()
            if (low, high) != (None, None)
        }

    @property
    def fixed_parameters(self) -> Mapping[str, float]:
        """Values as configured."""
        return self.fixed

    @property
    def start_values(self) -> Mapping[str, float]:
        """Start values as configured."""
        return self.start

    @property
    def given_values(self) -> Mapping[str, float]:
        """Start values, fixed values and bounds."""
        single = {"start": self.start, "fixed": self.fixed}
        return {
            **{f"model.{key}.{name}": value for key, values in single.items() for name, value in values.items()},
            **{
                f"model.bounds.{name}[{place}]": limit
                for name, limits in self.bounds.items()
                for place, limit in enumerate(limits)
                if limit is not None
            },
        }

    def problems(self) -> Iterator[str]:
        """Yield the problems of the formulas, and of values for their parameters."""
        if invalid := [*self._invalid({})]:
            yield from (f"`{key}`: {error}" for key, error in invalid)
            return
        names = self._names()
        for values in ("start", "bounds", "fixed"):
            for name in sorted(set(getattr(self, values)) - set(names)):
                near = difflib.get_close_matches(name, names, n=1)
                remedy = f"did you mean `{near[0]}`?" if near else "remove it or correct its name"
                yield (
                    f"`model.{values}.{name}` must name a parameter of `model.expression`={self._shown()}, "
                    f"which has {', '.join(names) or 'no names'}; {remedy}"
                )
        for name, (low, high) in self.limits.items():
            yield from self._problems_of_bounds(name, low, high)
        yield from (f"`model.fixed`: {error}" for _, error in self._invalid(self.fixed))

    def _invalid(self, fixed: Mapping[str, float]) -> Iterator[tuple[str, ExpressionError]]:
        """Yield key and error of each formula that cannot be read with these values of parameters."""
        for place, text in self.formulas.items():
            if (error := _error_of(text, fixed)) is not None:
                yield place, error

    def _shown(self) -> str:
        """Return `expression` as it is typed."""
        if isinstance(self.expression, str):
            return repr(self.expression)
        return f"{{{', '.join(f'{target}: {text!r}' for target, text in self.expression.items())}}}"

    def _problems_of_bounds(self, name: str, low: float, high: float) -> Iterator[str]:
        shown = f"[{', '.join(f'{limit:g}' if math.isfinite(limit) else 'null' for limit in (low, high))}]"
        start = self.start.get(name)
        if low > high:
            yield f"`model.bounds.{name}` must have a lower bound below the upper one, got {shown}; exchange them"
        elif low == high:
            yield f"`model.bounds.{name}` must be two different numbers, got {shown}; use model.fixed.{name}={low:g} instead"
        elif start is not None and name not in self.fixed and not low <= start <= high:
            yield f"`model.start.{name}` must lie within `model.bounds.{name}`={shown}, got {start:g}; change one of them"
        if name in self.fixed:
            yield (
                f"`model.bounds.{name}` must not be given with `model.fixed.{name}`={self.fixed[name]:g}, "
                "which is not trained; remove one of them"
            )

    def doubts(self, features: Sequence[str], others: Sequence[str], selected: bool) -> Iterator[str]:
        """Yield warnings about parameters with nearly the name of a column, and about features that are not used."""
        names = self._names()
        unused = [column for column in features if column not in names]
        similar = {folded(column): column for column in (*features, *unused)}  # an unused one is more likely meant
        for name in names:
            if name in others:
                yield (
                    f"`model.expression`: {name} is a parameter and not the column {name!r}, which is not among the "
                    "features; give the parameter another name"
                )
            elif name not in features and (column := similar.get(folded(name))):
                yield (
                    f"`model.expression`: the parameter {name} has nearly the name of the column {column!r}; "
                    f"write {written(column)} if the column is meant"
                )
        if unused and not selected:
            more = f" and {len(unused) - 10:,} more" if len(unused) > 10 else ""
            columns = "columns" if len(unused) > 1 else "column"
            yield f"`model.expression` does not use the {columns} {', '.join(map(repr, unused[:10]))}{more} of the data"


@dataclass(frozen=True, kw_only=True)
class LossConfig(Part):
    """Loss: the mean over rows and targets of a function of the error.

    A builder takes (config) and returns a function (prediction, target, reduction) that returns the loss of each number, or
    of each row, for reduction 0 and their mean for reduction 1, as the losses of `torch.ops.aten` do.
    """

    squares: ClassVar[bool] = False
    """Whether the loss is the mean of squared errors, for which many results have a closed form."""

    name: str = key("kind of loss")


@dataclass(frozen=True, kw_only=True)
class Mse(LossConfig, name="mse", builder="runner.models.losses:mse"):
    """Mean of squared errors."""

    squares = True


@dataclass(frozen=True, kw_only=True)
class Mae(LossConfig, name="mae", builder="runner.models.losses:mae"):
    """Mean of absolute errors."""


@dataclass(frozen=True, kw_only=True)
class Huber(LossConfig, name="huber", builder="runner.models.losses:huber"):
    """Squared error up to delta, linear beyond it (Huber, 1964)."""

    delta: float = key(
        "absolute error at which the loss changes from quadratic to linear", unit="target units", above=0
    )


@dataclass(frozen=True, kw_only=True)
class CustomLoss(LossConfig, name="custom", builder="runner.models.custom_loss:build"):
    """A `torch.nn.Module` of your own: `forward` takes predictions and targets [rows, targets] and returns the loss of each."""

    target: str = key("class of the loss, as package.module:Class; its package must be trusted with --trust")
    kwargs: dict[str, Any] = key("arguments of the class; reduction is none where it has it")

    @property
    def code(self) -> Target:
        """The class to import."""
        return Target("loss.target", self.target)

    def problems(self) -> Iterator[str]:
        """Yield the problem of a target that is none."""
        yield from self.code.problems("my_lab.losses:Quantile")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Part):
    """Optimizer: a method that changes the parameters to reduce the loss.

    A builder takes (config, parameters by name) and returns a `runner.optim.base.Optimizer`. The builder of a
    least-squares method also takes the configurations of all lanes, and bounds of the parameters if there are any. An
    optimizer that supports update=manual names its `rule`, which takes (configurations of all lanes, numbers) and returns
    a `runner.optim.rules.Rule`.
    """

    rule: ClassVar[str | None] = None
    """Module and function of the manual update rule, or None if there is none."""
    slots: ClassVar[tuple[str, ...] | None] = None
    """Names of what the method keeps of a parameter where no rule defines them; None allows any."""
    least_squares: ClassVar[bool] = False
    """Whether the method uses the residuals of all rows and chooses its own steps."""
    linear_only: ClassVar[bool] = False
    """Whether the method requires a model that is linear in its parameters."""
    evaluates_repeatedly: ClassVar[bool] = False
    """Whether one step evaluates the loss more than once, as a line search does."""

    name: str = key("kind of optimizer")

    def __init_subclass__(cls, *, rule: str | None = None, **binding: Any) -> None:
        super().__init_subclass__(**binding)
        cls.rule = rule

    if TYPE_CHECKING:

        @property
        def lr(self) -> float | None:
            """Learning rate before the schedule, or None for a method that chooses its own steps."""

    @property
    def l2_penalty(self) -> float | None:
        """Weight of the l2 penalty in the loss, or None if the method shrinks parameters in another way."""
        return float(getattr(self, "weight_decay", 0.0))

    @property
    def descent_momentum(self) -> float | None:
        """Momentum of gradient descent (0 without momentum), or None for other methods."""
        return None


@dataclass(frozen=True, kw_only=True)
class _Optimizer(OptimizerConfig):
    lr: float = key("learning rate before the schedule", at_least=0, at_most=1e38, lane=True)


@dataclass(frozen=True, kw_only=True)
class Sgd(_Optimizer, name="sgd", builder="runner.optim.torch_optim:sgd", rule="runner.optim.rules:sgd"):
    """Gradient descent: p ← p − lr·g."""

    weight_decay: float = key(
        "weight of the l2 penalty; adds weight_decay·p to the gradient of a parameter p",
        at_least=0,
        at_most=1e38,
        lane=True,
    )

    @property
    def descent_momentum(self) -> float:
        """Momentum of 0."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Momentum(
    _Optimizer, name="momentum", builder="runner.optim.torch_optim:momentum", rule="runner.optim.rules:momentum"
):
    """Gradient descent with momentum (Polyak, 1964), as torch.optim.SGD defines it."""

    momentum: float = key("factor of the previous direction in the next one", at_least=0, below=1, lane=True)
    weight_decay: float = key(
        "weight of the l2 penalty; adds weight_decay·p to the gradient of a parameter p",
        at_least=0,
        at_most=1e38,
        lane=True,
    )

    @property
    def descent_momentum(self) -> float:
        """Momentum as configured."""
        return self.momentum


@dataclass(frozen=True, kw_only=True)
class Adam(_Optimizer, name="adam", builder="runner.optim.torch_optim:adam", rule="runner.optim.rules:adam"):
    """Adam (Kingma and Ba, 2015)."""

    betas: tuple[float, float] = key(
        "decay rates of the first and of the second moment", at_least=0, below=1, lane=True
    )
    eps: float = key("term added to the root of the second moment", above=0, lane=True)
    weight_decay: float = key(
        "weight of the l2 penalty; adds weight_decay·p to the gradient of a parameter p",
        at_least=0,
        at_most=1e38,
        lane=True,
    )


@dataclass(frozen=True, kw_only=True)
class AdamW(_Optimizer, name="adamw", builder="runner.optim.torch_optim:adamw", rule="runner.optim.rules:adamw"):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    betas: tuple[float, float] = key(
        "decay rates of the first and of the second moment", at_least=0, below=1, lane=True
    )
    eps: float = key("term added to the root of the second moment", above=0, lane=True)
    weight_decay: float = key(
        "decoupled weight decay; each step subtracts lr·weight_decay·p from a parameter p",
        at_least=0,
        at_most=1e38,
        lane=True,
    )

    @property
    def l2_penalty(self) -> float | None:
        """None with decoupled weight decay, which is no penalty in the loss; otherwise 0."""
        return None if self.weight_decay else 0.0


@dataclass(frozen=True, kw_only=True)
class Lbfgs(_Optimizer, name="lbfgs", builder="runner.optim.torch_optim:lbfgs"):
    """Limited-memory BFGS (Liu and Nocedal, 1989) of torch.optim; update=optimizer only."""

    evaluates_repeatedly = True
    slots = (
        "func_evals", "n_iter", "d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad", "prev_loss", "al", "still",
    )  # fmt: skip

    max_iter: int = key("most iterations of one step", at_least=1)
    history_size: int = key("number of previous updates that approximate the Hessian", at_least=1)
    tolerance_grad: float = key("a step ends if the largest gradient entry is at most this", at_least=0)
    tolerance_change: float = key("a step ends if the loss or the parameters change by less than this", at_least=0)
    line_search: Literal["strong_wolfe"] | None = key("line search along each direction; null uses steps of length lr")


@dataclass(frozen=True, kw_only=True)
class CustomOptimizer(_Optimizer, name="custom", builder="runner.optim.custom:build", rule="runner.optim.custom:rule"):
    """An optimizer of your own: a subclass of `torch.optim.Optimizer` for update=optimizer, or an update rule for update=manual."""

    target: str = key("class of the optimizer, as package.module:Class; its package must be trusted with --trust")
    kwargs: dict[str, Any] = key("arguments of the class besides the parameters and lr")

    @property
    def code(self) -> Target:
        """The class to import."""
        return Target("optimizer.target", self.target)

    @property
    def l2_penalty(self) -> None:
        """None: what the class adds to the loss is not known."""

    def problems(self) -> Iterator[str]:
        """Yield the problem of a target that is none."""
        yield from self.code.problems("my_lab.optim:Lion")


@dataclass(frozen=True, kw_only=True)
class _Solver(OptimizerConfig):
    """A least-squares method, which chooses its own steps."""

    least_squares = True

    @property
    def lr(self) -> None:
        """None: the method has no learning rate."""


@dataclass(frozen=True, kw_only=True)
class Lstsq(_Solver, name="lstsq", builder="runner.optim.least_squares:lstsq"):
    """The least-squares solution in one step, for loss=mse and models that are linear in their parameters."""

    linear_only = True
    slots = ("step",)

    weight_decay: float = key(
        "weight of the l2 penalty; adds weight_decay·p to the gradient of a parameter p",
        at_least=0,
        at_most=1e38,
        lane=True,
    )


@dataclass(frozen=True, kw_only=True)
class Lm(_Solver, name="lm", builder="runner.optim.least_squares:lm"):
    """Levenberg–Marquardt (Marquardt, 1963; Moré, 1978): damped Gauss–Newton steps for loss=mse, formulas and small models."""

    slots = ("scale", "radius", "offset")

    radius: float = key(
        "longest first step relative to the initial parameters, each weighted by its effect on the predictions",
        above=0,
        at_most=1e38,
        lane=True,
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Part):
    """Learning-rate schedule.

    A builder takes (config, lr, steps) and returns a function from the step (counted from 1) to its learning rate.
    """

    spans_run: ClassVar[bool] = True
    """Whether its learning rates depend on the number of steps of the run."""
    constant: ClassVar[bool] = False
    """Whether the learning rate is the same at every step."""

    name: str = key("kind of schedule")

    @property
    def least_steps(self) -> int:
        """Smallest number of steps of a run with this schedule."""
        return 1


@dataclass(frozen=True, kw_only=True)
class Constant(ScheduleConfig, name="constant", builder="runner.optim.schedules:constant"):
    """The same learning rate at every step."""

    spans_run = False
    constant = True


@dataclass(frozen=True, kw_only=True)
class Step(ScheduleConfig, name="step", builder="runner.optim.schedules:step"):
    """The learning rate is multiplied by factor at regular intervals."""

    spans_run = False

    every_steps: int = key("steps between two reductions", unit="steps", at_least=1, lane=True)
    factor: float = key("factor of each reduction of the learning rate", above=0, at_most=1, lane=True)


@dataclass(frozen=True, kw_only=True)
class Cosine(ScheduleConfig, name="cosine", builder="runner.optim.schedules:cosine"):
    """Half a cosine from lr down to final_factor·lr at the last step (Loshchilov and Hutter, 2017)."""

    final_factor: float = key("learning rate of the last step divided by lr", at_least=0, at_most=1, lane=True)


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(ScheduleConfig, name="warmup_cosine", builder="runner.optim.schedules:warmup_cosine"):
    """A linear warmup to lr, then half a cosine down to final_factor·lr."""

    warmup_steps: int = key("steps of the linear warmup", unit="steps", at_least=1, lane=True)
    final_factor: float = key("learning rate of the last step divided by lr", at_least=0, at_most=1, lane=True)

    @property
    def least_steps(self) -> int:
        """One step more than the warmup."""
        return self.warmup_steps + 1


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Strategy by which one run is distributed over devices and processes."""

    name: Literal["auto", "single", "dp", "ddp", "fsdp", "tensor", "pipeline"] = key(
        "strategy; auto is single on one process and ddp on several"
    )
    reduction: Literal["fast", "exact"] = key(
        "order in which gradients are added; exact makes it independent of the number of processes, to the bit",
        before="fast",
        hashed=True,
    )
    chunks: int = key(
        "chunks of every batch with reduction=exact; a power of two and a multiple of the number of processes",
        at_least=1,
        at_most=4096,
        before=8,
        hashed=True,
    )
    tensor_parallel: int = key(
        "with strategy=fsdp, number of processes that split each layer; rows are split over groups of that many processes",
        at_least=1,
        before=1,
        hashed=True,
    )


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Processes that `python -m runner` starts for one run. Under torchrun they exist already."""

    processes: int = key("processes on each host; 1 starts none", at_least=1, at_most=1024, before=1)
    nodes: int = key("number of hosts; the same command must be run on each", at_least=1, at_most=65_536, before=1)
    rdzv_endpoint: str | None = key(
        "host:port of the rendezvous, on one of the hosts; null on a single host",
        pattern=r"[^:\s]+:[0-9]{1,5}",
        before=None,
    )
    max_restarts: int = key(
        "number of times that all processes are restarted after one of them failed", at_least=0, before=0
    )
    timeout_seconds: float = key(
        "longest time that a process waits for another process", unit="seconds", above=0, at_most=1e6, before=600.0
    )


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Early stopping by a metric on the validation rows, or on the training rows if there are no validation rows."""

    metric: str = key(
        "metric to compare at every evaluation, which also says which state is the best: loss, rmse, mae, r2 or the name of one "
        "of your own in metrics, of which smaller values are better"
    )
    patience: int | None = key(
        "evaluations without improvement after which training stops; null does not stop early", at_least=1, lane=True
    )
    min_delta: float = key("smallest change that counts as an improvement", at_least=0, lane=True)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Length of training, batches, gradient clipping and evaluation."""

    steps: int | None = key(
        "number of parameter updates; null if epochs is set", unit="steps", at_least=1, resumable=True
    )
    epochs: int | None = key(
        "number of passes over the training rows; null if steps is set", unit="epochs", at_least=1, resumable=True
    )
    batch_size: int | None = key(
        "rows of one update on all processes together; null uses all rows", unit="rows", at_least=1
    )
    accumulate: int = key(
        "parts into which a batch is split for gradient accumulation; the gradient is that of the whole batch",
        at_least=1,
    )
    clip_norm: float | None = key(
        "largest norm of the gradient of all parameters; null does not clip", above=0, lane=True
    )
    check_gradients: bool = key("whether to check the gradients for nan and inf at every step, before the update")
    eval_every_steps: int | None = key(
        "steps between evaluations on the validation rows; null evaluates only at the end", unit="steps", at_least=1
    )
    compile: bool = key("whether to compile the forward pass with torch.compile")
    cuda_graph: Literal["auto"] | bool = key(
        "whether to capture the training step as a CUDA graph, which has the same result and is faster for small models; "
        "auto does so on CUDA and ROCm where it is possible",
        changes="placement",
        resumable=True,
        before="auto",
    )
    select: Literal["auto", "last", "best"] = key(
        "state that is reported: its metrics, parameters, plots and residuals; best is that of the best evaluation, "
        "auto is best with early stopping and last without",
        changes="recording",
        resumable=True,
        per_run=True,
        before="last",
    )
    early_stopping: EarlyStopping

    @property
    def reports_best(self) -> bool:
        """Whether the state of the best evaluation is reported, and not the last one."""
        return self.select == "best" or (self.select == "auto" and self.early_stopping.patience is not None)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Checkpoints: when they are saved and how many are kept."""

    every_steps: int | None = key(
        "steps between checkpoints; null saves only at the end and on a signal", unit="steps", at_least=1
    )
    keep: int | None = key(
        "number of newest checkpoints to keep, in addition to the best one; null keeps all", at_least=1
    )
    metric: Metric | None = key(
        "metric of checkpoints/best, for runs of older versions; null is train.early_stopping.metric"
    )
    async_save: bool = key("whether to write checkpoints in the background while training continues", before=False)


@dataclass(frozen=True, kw_only=True)
class SinkConfig(Part):
    """Sink: a destination of the rows of metrics.

    A builder takes (config, run directory, held) and returns a `runner.runs.sinks.base.Sink`. With `held`, its files are
    open only during a write, because a sweep has too many runs to keep all files open.
    """

    name: str = key("kind of sink")


@dataclass(frozen=True, kw_only=True)
class JsonLines(SinkConfig, name="jsonl", builder="runner.runs.sinks.jsonl:build"):
    """`metrics.jsonl` with one line of strict JSON for each row."""


@dataclass(frozen=True, kw_only=True)
class TensorBoard(SinkConfig, name="tensorboard", builder="runner.runs.sinks.tensorboard:build"):
    """TensorBoard event files."""


MOST_TRIALS = 1_000_000
"""Largest number of trials of a sweep: each leaves some files, and all are in one manifest."""

BASELINES = ("mean", "linear", "boosting")
"""Entries of `record.baselines`."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """Metrics, plots, residuals and hashes that a run writes."""

    every_steps: int = key(
        "steps between rows of metrics in metrics.jsonl, TensorBoard and the console", unit="steps", at_least=1
    )
    sinks: tuple[str, ...] = key(
        "sinks of the rows of metrics in addition to the console; jsonl is required, tensorboard is optional, and "
        "package.module:Class is one of your own, from a package that is trusted with --trust",
        before=["jsonl", "tensorboard"],
    )
    plots: bool = key("whether to write plots/*.png at the end")
    residuals: bool = key(
        "whether to write residuals.csv at the end, with target and prediction of each row, unless there are very many",
        before=True,
    )
    baselines: tuple[str, ...] = key(
        "simple models that the results of a table are compared with: mean (of the training rows), linear (least squares) and "
        "boosting (trees of scikit-learn, which the extra `baselines` installs)",
        before=["mean", "linear"],
    )
    hash_every_steps: int | None = key(
        "steps between lines of hashes.jsonl, from step 0 on; `diverge` compares them to find where two runs differ; null writes none",
        unit="steps",
        at_least=1,
        before=None,
    )

    @property
    def code(self) -> tuple[Target, ...]:
        """Sinks of the user's own, which are names with a dot or a colon."""
        return tuple(Target("record.sinks", name) for name in self.sinks if "." in name or ":" in name)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Limits and checks of a sweep (`-m`)."""

    max_trials: int = key(
        "largest number of trials; a grid of more trials is refused", at_least=1, at_most=MOST_TRIALS, before=10_000
    )
    audit: int = key(
        "number of random trials that are trained again by themselves at the end and compared", at_least=0, before=0
    )
    memory_gib: float | None = key(
        "memory that vmapped trials may use; null is half of the free memory of the device",
        unit="GiB",
        above=0,
        before=None,
    )


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predictions for new rows."""

    unseen: Literal["other", "error"] = key(
        "what a category is that the training rows did not have: other is one without a column of its own, error refuses it",
        before="other",
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration of one run."""

    name: str = key("name of the experiment and of the folder of its runs", pattern=_NAME, changes="recording")
    seed: int = key("seed of every random stream", at_least=0, at_most=2**32 - 1, lane=True)
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = key("dtype of parameters and data")
    amp: Literal["off", "bfloat16", "float16"] = key(
        "mixed precision of the forward pass; float16 uses a gradient scaler"
    )
    update: Literal["manual", "optimizer"] = key(
        "implementation of the update; manual is written out in this package, optimizer is torch.optim"
    )
    deterministic: bool = key("whether to use only deterministic operations")
    metrics: tuple[str, ...] = key(
        "metrics that are shown: rmse, mae and r2, which the files have in any case, and functions of your own, as "
        "package.module:function, which take (prediction, target) and return a value for each row; trust their package with --trust",
        before=list(METRICS),
    )
    seeds: int | None = key(
        "number of seeds of a sweep, counted from `seed`; null is one run",
        at_least=1,
        changes="recording",
        per_run=True,
        before=None,
    )
    run_dir: str | None = key(
        "directory of the run or sweep; null is a new directory runs/<name>/<stamp>", changes="recording", per_run=True
    )
    resume: str | None = key("directory of the run to resume", changes="recording", resumable=True, per_run=True)
    device: Device = group(resumable=True)
    data: DataConfig
    model: ModelConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    strategy: Strategy = group(resumable=True)
    launch: Launch = group(changes="placement", resumable=True)
    train: Train
    checkpoint: Checkpoint = group(changes="recording", resumable=True)
    record: Record = group(changes="recording", resumable=True)
    sweep: Sweep = group(changes="recording", per_run=True)
    predict: Predict = group(changes="recording", per_run=True)

    @property
    def may_standardize(self) -> bool:
        """Whether data.standardize=true is a change that the configuration allows, so that it can be advised."""
        data = self.data
        return not (data.standardize or data.numbers or data.target_scale or self.model.keeps_units)

    @property
    def code(self) -> tuple[Target, ...]:
        """Code of the user's own that the run imports."""
        parts: tuple[Part, ...] = (self.data, self.model, self.loss, self.optimizer)
        return (*(part.code for part in parts if part.code is not None), *self.own_metrics, *self.record.code)

    @property
    def own_metrics(self) -> tuple[Target, ...]:
        """Functions of the user's own among the metrics; one without a colon is refused."""
        return tuple(Target("metrics", entry) for entry in self.metrics if ":" in entry or "." in entry)

    @property
    def category_coding(self) -> CategoryCoding:
        """Form in which the model gets a column of categories.

        With "reference" the first value has no coefficient, since the columns add up to the constant; a gradient method and a
        penalty have an answer for every column.
        """
        if self.model.wants_codes():
            return "codes"
        solved = self.model.adds_constant and self.optimizer.least_squares and not self.optimizer.l2_penalty
        return "reference" if solved else "one-hot"


def plain(config: Any) -> dict[str, Any]:
    """Return a configuration as plain values for YAML and JSON: dicts, lists, numbers and strings."""
    values: dict[str, Any] = _plain(config)
    return values


def _plain(value: Any) -> Any:
    # dataclasses.asdict copies every value deeply and takes ten times as long. A sweep calls this thousands of times.
    if isinstance(value, (str, int, float)) or value is None:
        return value
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    kind: Any = type(value)
    return {name: _plain(getattr(value, name)) for name in _names(kind)}


@cache
def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def config_hash(config: Config) -> str:
    """Return the SHA-256 of every key that the answer depends on.

    Newer keys that still equal their value from before they existed are left out, so that old hashes stay valid.
    """
    values = without_newer(type(config), hashed(plain(config)))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def hashed(values: dict[str, Any]) -> dict[str, Any]:
    """Return those plain values of a configuration that the answer depends on."""
    return without(values, _unhashed_keys())


@cache
def _unhashed_keys() -> tuple[str, ...]:
    """Return the keys that change only where a run is computed or how it is recorded."""
    return keys_where(Config, lambda k: k.changes != "answer")


@cache
def resumable_keys() -> tuple[str, ...]:
    """Return the keys that may be overridden when a run is resumed. Any other would change the experiment."""
    return keys_where(Config, lambda k: k.resumable)


@cache
def free_keys() -> tuple[str, ...]:
    """Return the keys that may differ between a checkpoint and the configuration that resumes it."""
    return keys_where(Config, lambda k: k.resumable or k.changes != "answer")


@cache
def _per_run_keys() -> tuple[str, ...]:
    return keys_where(Config, lambda k: k.per_run)


def program(config: Config) -> str:
    """Return a text that is the same for all trials of one vmapped program."""
    return json.dumps(without(without_lanes(config), _per_run_keys()), sort_keys=True)
