"""Predictions of trained models for new rows. They do not depend on how many rows are asked for at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from runner.compute import devices, precision
from runner.compute.devices import DeviceChoice
from runner.config.schema import Config, Device
from runner.data import new_rows
from runner.data.new_rows import BlockSource, NewRows, Policy
from runner.data.preprocessing import Preprocessing
from runner.errors import CheckpointError, RunFailed
from runner.models.base import Model
from runner.training import intervals
from runner.training.bands import Bands
from runner.training.failures import is_out_of_memory
from runner.training.intervals import Intervals
from runner.training.trained import Trained

CHUNK_ROWS = 1024
"""Rows of each forward pass, however many rows are asked for."""

PROBES = 4
"""Orders of random rows by which it is found out whether the place of a row in a forward pass matters."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predictions in the units of the file, float64 on the CPU."""

    values: Tensor
    """[rows, targets]; of several models their mean."""
    spread: Tensor | None
    """Standard deviation [rows, targets] between several models, which divides by their number − 1; None of a single one."""
    low: Tensor | None = None
    """Lower ends [rows, targets] of the intervals that were asked for."""
    high: Tensor | None = None


class Predictor:
    """Predictions of one trained model, or the mean of several with the same inputs and targets."""

    def __init__(self, members: Sequence[Trained], device: torch.device | None = None) -> None:
        self.members = tuple(members)
        self.device = device or torch.device("cpu")
        self._forwards = [Forward(member, self.device) for member in self.members]

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle has the plain configuration and tensors, and predicts on the CPU: another machine may have no other device.
        return type(self), (self.members,)

    @property
    def model(self) -> Model:
        """The module of the model, or of the first of several."""
        return self._forwards[0].model

    @property
    def config(self) -> Config:
        """The configuration that the model, or the first of several, was trained with."""
        return self.members[0].config

    @property
    def preprocessing(self) -> Preprocessing:
        """Encoding and scaling of the model, or of the first of several."""
        return self.members[0].preprocessing

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the targets."""
        return self.preprocessing.target_names

    def intervals(self, level: float, name: str = "interval") -> Intervals | Bands:
        """Return intervals that hold the target with a probability; a message calls it `name`.

        They are by the rows of `data.split.calibrate`, or without those by the covariance of a fit by `lm` or `lstsq`. Raises
        `ConfigError` for a level that cannot be had, and `CheckpointError` for runs with neither.
        """
        return intervals.of_models(self.members, level, name)

    def of_columns(self, columns: Any, intervals: Intervals | Bands | None = None) -> Prediction:
        """Return the predictions for columns of a table by name, of the kinds that the features have."""
        return self.of_inputs(self.inputs(columns), intervals)

    def inputs(self, columns: Any) -> list[tuple[Tensor, ...]]:
        """Return the inputs of each model for columns of a table by name."""
        pairs = zip(self.members, self._forwards, strict=True)
        return [member.preprocessing.inputs(columns, forward.dtype) for member, forward in pairs]

    def exchanged(self, inputs: Sequence[tuple[Tensor, ...]], feature: str, orders: Tensor) -> list[tuple[Tensor, ...]]:
        """Return inputs of each model as `Preprocessing.exchanged` does."""
        pairs = zip(self.members, inputs, strict=True)
        return [member.preprocessing.exchanged(own, feature, orders) for member, own in pairs]

    def of_inputs(self, inputs: Sequence[tuple[Tensor, ...]], intervals: Intervals | Bands | None = None) -> Prediction:
        """Return the predictions for the inputs of each model, with the intervals that are given."""
        triples = zip(self.members, self._forwards, inputs, strict=True)
        found = [member.preprocessing.scaling.undo(forward(own)) for member, forward, own in triples]
        stacked = torch.stack(found)
        low, high = (None, None) if intervals is None else intervals.around(stacked, inputs)
        if len(found) == 1:
            return Prediction(found[0], None, low, high)
        return Prediction(stacked.mean(0), stacked.std(0), low, high)

    @overload
    def predict(self, frame: Any, interval: None = None) -> np.ndarray: ...

    @overload
    def predict(self, frame: Any, interval: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...

    def predict(
        self, frame: Any, interval: float | None = None
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the predictions in the units of the file: float64 [rows], or [rows, targets] for several targets.

        `interval=0.9` returns the predictions and both ends of intervals, (prediction, low, high), that hold 90 % of the targets of
        new rows; the run must have rows of `data.split.calibrate`, or be a fit by `lm` or `lstsq`. Raises `ConfigError` and `CheckpointError` if it cannot be had.

        `frame` is a table of pandas, polars or pyarrow, or anything with Arrow's `__arrow_c_stream__`, whose columns are found by
        name in any order; or an array [rows, features] of numbers in the order of the features. Raises `DataError`, and warns of
        categories that the training rows did not have.
        """
        wanted, rows = None if interval is None else self.intervals(interval), self._rows(frame)
        found = [self.of_columns(block.columns, wanted) for block in rows.blocks()]
        for text in rows.warnings():
            warnings.warn(text, stacklevel=2)
        prediction = self._array([one.values for one in found])
        if wanted is None:
            return prediction
        return prediction, self._array([one.low for one in found]), self._array([one.high for one in found])

    def _array(self, blocks: Sequence[Tensor | None]) -> np.ndarray:
        """Return blocks [rows, targets] as one array, [rows] for a single target."""
        values: np.ndarray = torch.cat([block for block in blocks if block is not None]).numpy()
        return values[:, 0] if len(self.target_names) == 1 else values

    def preprocess(self, frame: Any) -> tuple[Tensor, ...]:
        """Return the inputs of `model`, each [rows, columns], for a table or an array, as `predict` takes them.

        They are the numbers, and for a model with embeddings the codes of the categories.
        """
        blocks = self._rows(frame).blocks()
        dtype = self._forwards[0].dtype
        inputs = [self.preprocessing.inputs(block.columns, dtype) for block in blocks]
        return tuple(map(torch.cat, zip(*inputs, strict=True)))

    def _rows(self, frame: Any) -> NewRows:
        source: BlockSource = new_rows.of_frame(frame, self.preprocessing)
        return NewRows(source, self.preprocessing, Policy.of(self.config))


class Forward:
    """The forward pass of one model, whose bits for a row depend on that row alone.

    Each pass has the same number of rows. Where the place of a row in it still matters (the product of a matrix with an odd
    number of columns may begin a row at another alignment), the rows are spaced so that all have places that are alike.
    """

    def __init__(self, trained: Trained, device: torch.device) -> None:
        self.model = trained.model().to(device)
        self.dtype = precision.DTYPES[trained.config.dtype]
        self._device = device
        self._autocast: Callable[[], Any] = precision.autocast(trained.config.amp, device)
        encoding = trained.preprocessing.encoding
        self._width, self._cardinalities = len(encoding.names), encoding.cardinalities
        self._chunks = tuple(torch.zeros_like(values) for values in self._random_inputs(CHUNK_ROWS, torch.Generator()))
        self._spacing = next(spacing for spacing in (1, 2, 4, 8, 16, CHUNK_ROWS) if self._ignores_places(spacing))

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return scaled predictions [rows, targets], float64 on the CPU, for the model's inputs [rows, columns] on the CPU."""
        try:
            return self._passes(inputs, self._spacing)
        except Exception as error:
            if is_out_of_memory(error):
                raise RunFailed(
                    f"out of memory in a prediction, which takes {CHUNK_ROWS:,} rows at a time; use --device cpu"
                ) from error
            raise

    def _passes(self, inputs: Sequence[Tensor], spacing: int) -> Tensor:
        pieces = zip(*(torch.split(values, CHUNK_ROWS // spacing) for values in inputs), strict=True)
        return torch.cat([self._pass(rows, spacing) for rows in pieces])

    def _pass(self, rows: Sequence[Tensor], spacing: int) -> Tensor:
        """Return the predictions of a few rows, in a pass of `CHUNK_ROWS` rows: the last one stands for those that lack."""
        batch = [self._filled(*pair, spacing) for pair in zip(self._chunks, rows, strict=True)]
        with torch.no_grad(), self._autocast():
            prediction: Tensor = self.model(*batch)
        return prediction[::spacing][: len(rows[0])].cpu().double()

    def _filled(self, chunk: Tensor, rows: Tensor, spacing: int) -> Tensor:
        count, chunk = len(rows), chunk[: CHUNK_ROWS // spacing]
        chunk[:count], chunk[count:] = rows, rows[-1:]
        return chunk.to(self._device).repeat_interleave(spacing, 0) if spacing > 1 else chunk.to(self._device)

    def _random_inputs(self, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        numbers = torch.randn(rows, self._width, generator=generator, dtype=torch.float64).to(self.dtype)
        codes = [torch.randint(count, (rows,), generator=generator) for count in self._cardinalities]
        return (numbers, torch.stack(codes, 1)) if codes else (numbers,)

    def _ignores_places(self, spacing: int) -> bool:
        """Return whether random rows in other places have the same predictions to the bit."""
        if spacing == CHUNK_ROWS:
            return True
        generator = torch.Generator().manual_seed(0)
        inputs = self._random_inputs(CHUNK_ROWS // spacing, generator)
        expected = self._passes(inputs, spacing)
        for _ in range(PROBES):
            order = torch.randperm(len(expected), generator=generator)
            moved = self._passes([values[order] for values in inputs], spacing)
            if not torch.equal(moved.nan_to_num(), expected[order].nan_to_num()):
                return False
        return True


def choose_device(name: str) -> DeviceChoice:
    """Return the device of a kind, such as auto or cpu. Raises `DeviceError` if it is not there."""
    import os

    device = Device(name=name, visible=None, threads=None, matmul_precision="highest")  # type: ignore[arg-type]
    return devices.choose(device, os.environ, devices.probe())


def require_alike(members: Sequence[Trained]) -> None:
    """Raise `CheckpointError` unless all models have the same features and targets."""
    first, *others = members
    for other in others:
        if (other.preprocessing.kinds, other.preprocessing.target_names) != (
            first.preprocessing.kinds,
            first.preprocessing.target_names,
        ):
            raise CheckpointError(
                f"{other.source} must have the same features and targets as {first.source} for a mean of both; give one of them"
            )
