"""What a prediction needs to know of the training rows: fitted with a run, saved in preprocessing.json, applied to new rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from runner.config.documents import FORMAT, faults, read_json
from runner.config.parts import key
from runner.config.validation import shown
from runner.data import transforms
from runner.data.encoding import CategoryEncoding, Encoding, NumberEncoding
from runner.data.kinds import Categories, Column, Numbers
from runner.data.scaling import Scaling
from runner.errors import CheckpointError

PREPROCESSING = "preprocessing.json"
"""Name of the file in a run directory."""


@dataclass(frozen=True)
class Preprocessing:
    """Encoding and scaling of a run's features and targets."""

    encoding: Encoding
    scaling: Scaling
    target_names: tuple[str, ...]

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of each feature of a table, by its name: number, date or category."""
        return {column.column: column.source_kind for column in self.encoding.columns}

    @property
    def model_columns(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
        """Names of the numbers and of the targets, and numbers of codes of the categories: what the builder of a model needs."""
        return self.encoding.names, self.target_names, self.encoding.cardinalities

    def inputs(self, columns: Mapping[str, Column], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return the model's inputs for columns of these kinds by name, as training has them to the bit.

        They are numbers [rows, columns], and codes of categories [rows, columns] for a model that takes them.
        """
        rows = len(next(iter(columns.values())).missing)
        numbers, codes = torch.zeros(rows, len(self.encoding.scaled), dtype=dtype), list[Tensor]()
        scaled = torch.empty(1, rows, dtype=torch.float64)
        for place, encoded in self.encoding.placed():
            column = columns[encoded.column]
            if isinstance(encoded, CategoryEncoding):
                assert isinstance(column, Categories)
                if encoded.coded:
                    codes.append(torch.from_numpy(encoded.codes(column)))
                    continue
                places = torch.from_numpy(encoded.places(column))
                known = (places >= 0).nonzero().flatten()
                numbers[known, place + places[known]] = 1
                continue
            assert isinstance(column, Numbers)
            column = column if column.kind == encoded.kind else column.part(encoded.kind)
            # A copy, because a column of Arrow is read-only.
            self.scaling.some_features([place], torch.tensor(encoded.transformed(column)).unsqueeze(0), scaled)
            numbers[:, place] = scaled[0]
            if encoded.indicated:
                numbers[:, place + 1] = torch.from_numpy(column.missing)
        return (numbers, torch.stack(codes, 1).long()) if codes else (numbers,)

    def exchanged(self, inputs: tuple[Tensor, ...], feature: str, orders: Tensor) -> tuple[Tensor, ...]:
        """Return inputs in which one feature of the table has the values of other rows, several times.

        `orders` [times, rows] are the numbers of these rows. The inputs are [times · rows, columns], one time after the other.
        """
        changed, rows = tuple(values.repeat(len(orders), 1) for values in inputs), orders.flatten()
        for place, encoded in self.encoding.placed():
            if encoded.column == feature:
                own = slice(place, place + len(encoded.names))
                changed[0][:, own] = inputs[0][rows, own]
        for place, coded in enumerate(self.encoding.coded):
            if coded.name == feature:
                changed[1][:, place] = inputs[1][rows, place]
        return changed

    def state(self) -> dict[str, Any]:
        """Return the content of preprocessing.json."""
        scaling = self.scaling
        return {
            "format": FORMAT,
            "features": self.encoding.state(),
            "inputs": [
                {"name": name, "mean": mean, "scale": scale}
                for name, mean, scale in zip(
                    self.encoding.names, scaling.feature_mean.tolist(), scaling.feature_scale.tolist(), strict=True
                )
            ],
            "targets": [
                {"name": name, "log": scaling.log_target, "mean": mean, "scale": scale}
                for name, mean, scale in zip(
                    self.target_names, scaling.target_mean.tolist(), scaling.target_scale.tolist(), strict=True
                )
            ],
        }


# ------------------------------------------------------------------------------------------------------ read from a file


@dataclass(frozen=True, kw_only=True)
class _Format:
    format: int = key("version of the file's form", at_least=1)


@dataclass(frozen=True, kw_only=True)
class _Number:
    name: str = key("name of the column")
    kind: Literal["number", "date", "year", "month", "day", "weekday", "hour"] = key("what its cells are")
    mean: float = key("mean of the training rows")
    indicated: bool = key("whether a column says where a value is missing")


@dataclass(frozen=True, kw_only=True)
class _Quantile:
    kind: Literal["quantile"] = key("what is fitted")
    quantiles: tuple[float, ...] = key("quantiles of the training rows")


@dataclass(frozen=True, kw_only=True)
class _Robust:
    kind: Literal["robust"] = key("what is fitted")
    median: float = key("median of the training rows")
    scale: float = key("range of the training rows", above=0)


@dataclass(frozen=True, kw_only=True)
class _Category:
    name: str = key("name of the column")
    kind: Literal["category"] = key("what its cells are")
    values: tuple[str, ...] = key("values of the training rows")
    reference: str | None = key("value without a column")
    codes: bool = key("whether the values are codes, instead of columns", before=False)


@dataclass(frozen=True, kw_only=True)
class _Input:
    name: str = key("name of the encoded column")
    mean: float = key("what is subtracted")
    scale: float = key("what it is divided by", above=0)


@dataclass(frozen=True, kw_only=True)
class _Target(_Input):
    log: bool = key("whether the logarithm is trained")


_TRANSFORMS: dict[Any, type] = {"quantile": _Quantile, "robust": _Robust}


def read(folder: Path) -> Preprocessing:
    """Return the preprocessing of a run directory. Raises `CheckpointError` with every problem of the file."""
    path = folder / PREPROCESSING
    return of_state(read_json(path, "the preprocessing of a run"), path)


def of_state(state: Mapping[str, Any], path: Path) -> Preprocessing:
    """Return the preprocessing that a file describes. Raises `CheckpointError` with every problem."""
    problems = [
        *faults(_Format, state),
        *_list_faults(state, "features", _feature_faults),
        *_list_faults(state, "inputs", lambda value, place: faults(_Input, value, place)),
        *_list_faults(state, "targets", lambda value, place: faults(_Target, value, place)),
    ]
    if problems:
        raise CheckpointError(f"{path}: {problem}" for problem in problems)
    encoding = Encoding(tuple(map(_encoded, state["features"])))
    inputs, targets = state["inputs"], state["targets"]
    if [value["name"] for value in inputs] != list(encoding.names):
        problems.append("`inputs` must be the columns that `features` make; restore the file")
    for name in ("features", "targets"):
        names = [value["name"] for value in state[name]]
        if not names or len({*names}) < len(names):
            problems.append(f"`{name}` must have different names, and one at least; restore the file")
    if len({value["log"] for value in targets}) > 1:
        problems.append("`targets` must all have the same `log`; restore the file")
    if problems:
        raise CheckpointError(f"{path}: {problem}" for problem in problems)
    scaling = Scaling(*_scales(inputs), *_scales(targets), targets[0]["log"])
    return Preprocessing(encoding, scaling, tuple(value["name"] for value in targets))


def _list_faults(state: Mapping[str, Any], name: str, faults_of: Any) -> list[str]:
    values = state.get(name)
    if not isinstance(values, list) or not all(isinstance(value, Mapping) for value in values):
        return [f"`{name}` must be a list of groups of keys, got {shown(values)}; restore the file"]
    return [problem for place, value in enumerate(values) for problem in faults_of(value, f"{name}.{place}")]


def _feature_faults(value: Mapping[str, Any], place: str) -> list[str]:
    if value.get("kind") == "category":
        return faults(_Category, value, place)
    transform = value.get("transform")
    if transform is None:
        return faults(_Number, value, place)
    kind = transform.get("kind") if isinstance(transform, Mapping) else None
    if not isinstance(kind, str) or kind not in _TRANSFORMS:
        choices = ", ".join(_TRANSFORMS)
        return [f"`{place}.transform.kind` must be one of {choices}, got {shown(kind)}; restore the file"]
    problems = [*faults(_Number, value, place), *faults(_TRANSFORMS[kind], transform, f"{place}.transform")]
    quantiles = transform.get("quantiles")
    if not problems and quantiles is not None and (not quantiles or quantiles != sorted(quantiles)):
        problems.append(f"`{place}.transform.quantiles` must ascend, and be one at least; restore the file")
    return problems


def _encoded(state: Mapping[str, Any]) -> NumberEncoding | CategoryEncoding:
    if state["kind"] == "category":
        return CategoryEncoding(state["name"], tuple(state["values"]), state["reference"], state.get("codes", False))
    transform = None if state.get("transform") is None else transforms.of_state(state["transform"])
    return NumberEncoding(state["name"], state["kind"], float(state["mean"]), state["indicated"], transform)


def _scales(values: list[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """Return means and scales, float64 [columns]."""
    return (
        torch.tensor([value["mean"] for value in values], dtype=torch.float64),
        torch.tensor([value["scale"] for value in values], dtype=torch.float64),
    )
