"""Estimators for scikit-learn: any model of a configuration, and formulas.

`runner.sklearn` needs scikit-learn 1.6 or newer (extra `baselines`). Its two estimators pass `check_estimator` and work in pipelines
and searches. A fit has the bits of `python -m runner` with the same rows, configuration, seed and number of threads. It writes no files,
leaves torch's settings and random streams as they are, and waits for another fit in the same process.

A table with named columns, of pandas, polars or pyarrow (extra `tables`), is read like a file: columns of text and truth values are
categories, dates are dates, and `data.missing` says what is done where a value is missing. An array has numbers.
"""

from __future__ import annotations

import math
import numbers
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np

from runner import _arguments
from runner.config import compose
from runner.config.expression import written
from runner.config.overrides import key_of
from runner.config.schema import Config, TableConfig, plain
from runner.config.validation import normalized
from runner.data import new_rows
from runner.data.array_source import ArraySource
from runner.data.arrow_files import ArrowSource, table_of
from runner.errors import ConfigError, InputError
from runner.training import in_memory
from runner.training.predicting import Predictor

try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_array, check_random_state, check_X_y
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        'runner.sklearn needs scikit-learn 1.6 or newer, which is not installed; pip install "runner[baselines]"'
    ) from error

__all__ = ["CurveRegressor", "Regressor"]

ROWS = ("data=memory", "data.split.test=0")
"""Arguments for rows in memory."""

_COMPOSING = threading.Lock()
"""Hydra composes one configuration at a time."""


class _Estimator(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regressor that is trained by a configuration."""

    predictor_: Predictor
    summary_: Mapping[str, Any]
    n_iter_: int

    random_state: Any
    overrides: Sequence[str]

    def predict(self, X: Any, interval: float | None = None) -> Any:
        """Return the predictions for rows of X [rows, features], float64 of the shape of y with these rows.

        Categories that the rows of `fit` did not have are predicted as another one, with a warning.

        `interval=0.9` returns the predictions and both ends of intervals, (prediction, low, high), that hold 90 % of the targets of
        new rows. They are by the rows that `data.split.calibrate` among the `overrides` sets aside, or without those by the covariance
        of a fit by `lm` or `lstsq`, such as a `CurveRegressor` without weights. Raises the errors of `runner` where neither is known.
        """
        check_is_fitted(self)
        source = _source(self._rows(X, self.predictor_.config, reset=False), self._feature_names())
        if interval is None:
            return self._shaped(self.predictor_.predict(source))
        return tuple(map(self._shaped, self.predictor_.predict(source, interval)))

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        """Return values of rows in the shape of y."""
        return values.reshape(-1, 1) if self._column_of_targets else values

    def _fit(self, X: Any, y: Any, settings: Mapping[str, Any], weights: Mapping[str, Any], multi_output: bool) -> None:
        """Train on rows X [rows, features] with targets y.

        `settings` are values by dotted key. `weights` are columns [rows] by the key that names them; None is none.
        """
        composed = self._composed()
        rows = self._rows(X, composed, reset=True, ensure_min_samples=2)
        # The zeros stand for a table, which scikit-learn would take for an array of numbers.
        checks = {"y_numeric": True, "multi_output": multi_output, "ensure_min_samples": 2, "estimator": self}
        _, targets = check_X_y(np.zeros((len(rows), 1)), y, **checks)
        targets = np.asarray(targets, np.float64)
        self._column_of_targets = targets.ndim == 2 and targets.shape[1] == 1
        features = self._feature_names()
        names = [*_new_names("y", targets.size // len(targets), features)]
        given = {key: _weights(weight, len(targets), key) for key, weight in weights.items() if weight is not None}
        others = {key: next(_new_names(key.removeprefix("data."), 1, [*features, *names])) for key in given}
        columns = [*targets.reshape(len(targets), -1).T, *given.values()]
        source = _source(rows, features, dict(zip([*names, *others.values()], columns, strict=True)))
        target = {"data.target": names if len(names) > 1 else names[0]}
        settings = {**settings, **self._settings(features, names), **self._seed(), **target, **others}
        fit = in_memory.fit(_with(composed, settings), source)
        self.predictor_ = Predictor([fit.trained], fit.device)
        self.summary_ = fit.summary
        self.n_iter_ = fit.summary["steps"]

    def _rows(self, X: Any, config: Config, reset: bool, **checks: Any) -> Any:
        """Return X, checked by scikit-learn, as a table of pyarrow or an array [rows, features] of float64."""
        if not new_rows.is_table(X):
            finite = True if _missing(config) == "error" else "allow-nan"
            return validate_data(self, X, dtype=np.float64, ensure_all_finite=finite, reset=reset, **checks)
        validate_data(self, X, skip_check_array=True, reset=reset)
        return table_of(X).select(range(self.n_features_in_))  # behind these pandas has its index

    def _arguments(self) -> list[str]:
        """Return the arguments of the command line, before `overrides`."""
        raise NotImplementedError

    def _settings(self, features: Sequence[str], targets: Sequence[str]) -> Mapping[str, Any]:
        """Return values by dotted key that depend on the names of features and targets. Raises `ConfigError`."""
        return {}

    def _composed(self) -> Config:
        """Return the configuration without what depends on the rows, and without the seed. Raises `ConfigError`."""
        overrides = _arguments(None, self.overrides)
        for override in overrides:
            if key_of(override) == "data":
                raise ConfigError(
                    f"`data` must be left out, because `fit` is given the rows, got {override}; remove it from `overrides`"
                )
        return _composed((*self._arguments(), *overrides))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        with suppress(InputError):  # `fit` raises it
            tags.input_tags.allow_nan = _missing(self._composed()) == "mean"
        return tags

    def _feature_names(self) -> list[str]:
        names = getattr(self, "feature_names_in_", None)
        return [f"x{place}" for place in range(self.n_features_in_)] if names is None else [*map(normalized, names)]

    def _seed(self) -> dict[str, int]:
        if self.random_state is None:
            return {}
        if isinstance(self.random_state, numbers.Integral):
            return {"seed": int(self.random_state)}
        return {"seed": check_random_state(self.random_state).randint(2**31)}


class Regressor(_Estimator):
    """Any model of `runner` as an estimator of scikit-learn: `Regressor(lr=0.003, epochs=100).fit(X, y).predict(X)`.

    `experiment` names the configuration, by default one for small tables, and None has the default values. What else is
    None is as the configuration says. `overrides` are further arguments of the command line, such as `["model.widths=[32]",
    "data.split.valid=0.2"]`. Every row that `fit` gets is trained on, unless experiment or overrides set validation rows
    aside. `random_state` is the seed. Several columns of y are several targets. Missing values are refused, or treated as
    `data.missing` in `overrides` says.

    After `fit`: `predictor_` (`runner.training.predicting.Predictor`, whose `model` is the module), `summary_` (the content of
    summary.json), `n_iter_` (updates), `n_features_in_`, `feature_names_in_`. A pickled estimator predicts on the CPU.
    """

    def __init__(
        self,
        experiment: str | None = "table",
        *,
        model: str | None = None,
        loss: str | None = None,
        optimizer: str | None = None,
        lr: float | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        device: str | None = None,
        random_state: Any = None,
        overrides: Sequence[str] = (),
    ) -> None:
        self.experiment = experiment
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state
        self.overrides = overrides

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Regressor:
        """Train on rows X [rows, features] with targets y [rows] or [rows, targets], and return the estimator.

        A row of `sample_weight` 2 counts like two equal rows. Raises `ValueError` for arrays that do not fit, and the errors of
        `runner` for a configuration that cannot be run.
        """
        self._fit(X, y, {}, {"data.weight": sample_weight}, multi_output=True)
        return self

    def _arguments(self) -> list[str]:
        named = {
            "model": self.model,
            "loss": self.loss,
            "optimizer": self.optimizer,
            "optimizer.lr": self.lr,
            "train.epochs": self.epochs,
            "train.batch_size": self.batch_size,
            "device": self.device,
        }
        return [
            *_arguments(self.experiment, ()),
            *(f"{key}={value}" for key, value in named.items() if value is not None),
        ]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class CurveRegressor(_Estimator):
    """A formula fitted by least squares (Levenberg–Marquardt): `CurveRegressor("a*exp(-b*x0) + c").fit(X, y).params_`.

    The columns of an array are called x0, x1, …, and those of a table have their names; every other name in the expression
    is a parameter. None is a constant and a coefficient for each of up to about a hundred columns. A list has a formula for each
    column of y, in which a parameter of the same name is the same one. `start`, `bounds` and
    `fixed` have values, pairs (None is no bound) and values by the name of a parameter. `absolute_sigma` says whether
    `sigma` is known as it is, and not only up to a factor that the residuals determine, as in `scipy.optimize.curve_fit`.
    `random_state` is the seed of the start values that are not given, and `overrides` are further arguments of the command
    line.

    After `fit`: `params_` by name, `standard_errors_` by name (nan for a parameter without one), `covariance_` [parameters,
    parameters] in their order (nan for a parameter without a standard error), `converged_`, `expression_`, and what `Regressor` has.
    """

    params_: dict[str, float]
    standard_errors_: dict[str, float]
    covariance_: np.ndarray
    converged_: bool
    expression_: str | Sequence[str]

    def __init__(
        self,
        expression: str | Sequence[str] | None = None,
        *,
        start: Mapping[str, float] | None = None,
        bounds: Mapping[str, Sequence[float | None]] | None = None,
        fixed: Mapping[str, float] | None = None,
        absolute_sigma: bool = False,
        random_state: Any = None,
        overrides: Sequence[str] = (),
    ) -> None:
        self.expression = expression
        self.start = start
        self.bounds = bounds
        self.fixed = fixed
        self.absolute_sigma = absolute_sigma
        self.random_state = random_state
        self.overrides = overrides

    def fit(self, X: Any, y: Any, sample_weight: Any = None, sigma: Any = None) -> CurveRegressor:
        """Fit the formula to rows X [rows, features] with target y, and return the estimator. y is [rows], or [rows, targets] for a list of formulas.

        `sigma` [rows] are the standard deviations of y, and `sample_weight` [rows] weights of which only the ratios count. Raises
        `ValueError` for arrays that do not fit, and the errors of `runner` for a formula that cannot be fitted. Warns where the fit
        has not converged.
        """
        settings = {
            "model.start": _floats(self.start),
            "model.bounds": {name: [*map(_bound, pair)] for name, pair in (self.bounds or {}).items()},
            "model.fixed": _floats(self.fixed),
        }
        if sigma is not None:
            settings["data.sigma_kind"] = "absolute" if self.absolute_sigma else "relative"
        weights = {"data.weight": sample_weight, "data.sigma": sigma}
        self._fit(X, y, settings, weights, multi_output=self._several_targets)
        found = self.summary_
        self.params_, self.converged_ = dict(found["parameters"]), found["converged"]
        errors, covariance = found.get("standard_errors", {}), found.get("covariance", {})
        self.standard_errors_ = {name: errors.get(name, math.nan) for name in self.params_}
        self.covariance_ = np.full((len(self.params_), len(self.params_)), math.nan)
        if covariance:  # its rows and columns are those of the parameters that are neither fixed nor at a bound
            free = [place for place, name in enumerate(self.params_) if name in covariance]
            self.covariance_[np.ix_(free, free)] = [*covariance.values()]
        if not self.converged_:
            warnings.warn(
                f"the fit has not converged: {found['not_converged_because']}", ConvergenceWarning, stacklevel=2
            )
        return self

    def _arguments(self) -> list[str]:
        return _arguments("formula", ())

    def _settings(self, features: Sequence[str], targets: Sequence[str]) -> Mapping[str, Any]:
        self.expression_ = self.expression or _linear(features)
        if isinstance(self.expression_, str):
            return {"model.expression": self.expression_}
        if len(self.expression_) != len(targets):
            raise ConfigError(
                f"`expression` must have as many formulas as y has columns, {len(targets)}, got {len(self.expression_)}; give one "
                "for each column"
            )
        return {"model.expression": dict(zip(targets, self.expression_, strict=True))}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = self._several_targets
        return tags

    @property
    def _several_targets(self) -> bool:
        return not (self.expression is None or isinstance(self.expression, str))


def _linear(features: Sequence[str]) -> str:
    """Return the formula of a constant and a coefficient for each column, such as b0 + b1*x0 + b2*x1."""
    constant, *slopes = _new_names("b", len(features) + 1, features)
    return " + ".join([constant, *(f"{slope}*{written(name)}" for slope, name in zip(slopes, features, strict=True))])


def _floats(values: Mapping[str, float] | None) -> dict[str, float]:
    # numpy's numbers are no numbers of YAML.
    return {name: float(value) for name, value in (values or {}).items()}


def _bound(value: float | None) -> float | None:
    """Return a bound as a configuration has it, where None is none."""
    return None if value is None or math.isinf(value) else float(value)


@lru_cache(maxsize=128)
def _composed(arguments: tuple[str, ...]) -> Config:
    # A composition takes longer than many a fit, and a search asks for the same one for every fold.
    with _COMPOSING:
        return compose.compose([*ROWS, *arguments]).config


def _missing(config: Config) -> str:
    """Return `data.missing`; error for data without columns, which no fit takes."""
    return config.data.missing if isinstance(config.data, TableConfig) else "error"


def _source(
    rows: Any, features: Sequence[str], others: Mapping[str, np.ndarray] | None = None
) -> ArraySource | ArrowSource:
    """Return a table of pyarrow or an array [rows, features], and further columns [rows] by name, as a source of rows."""
    others = others or {}
    names = [*features, *others]
    if isinstance(rows, np.ndarray):
        return ArraySource(np.column_stack([rows, *others.values()]), names)
    for name, values in others.items():
        rows = rows.append_column(name, [values])
    return ArrowSource.of_table(rows.rename_columns(names))


def _with(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return a configuration with other values by dotted key. Raises `ConfigError`."""
    values = plain(config)
    for path, value in settings.items():
        *groups, name = path.split(".")
        group = values
        for each in groups:
            group = group[each]
        group[name] = value
    return compose.check(values)


def _new_names(name: str, count: int, taken: Sequence[str]) -> Iterator[str]:
    """Yield so many names of columns that no other one has: y, or y0, y1, …"""
    while any(other.startswith(name) for other in taken):
        name += "_"
    yield from (name,) if count == 1 else (f"{name}{place}" for place in range(count))


def _weights(values: Any, rows: int, key: str) -> np.ndarray:
    """Return weights or standard deviations of rows as float64 [rows]. Raises `ValueError`."""
    name = {"data.weight": "sample_weight", "data.sigma": "sigma"}[key]
    weights: np.ndarray = check_array(values, dtype=np.float64, ensure_2d=False, input_name=name)
    if weights.shape != (rows,):
        raise ValueError(f"{name} must have the shape ({rows},), got {weights.shape}; give one number for each row")
    if not weights.any():
        raise ValueError(f"{name} must not be zero in every row; give a weight above 0 to some rows")
    return weights
