"""Programs that run a model of ONNX: onnxruntime, or without it the slow reference of the package onnx."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.data.kinds import Categories, Column
from runner.errors import ConfigError


@dataclass(frozen=True)
class Runtime:
    """A model of ONNX that is ready to predict."""

    name: str
    slow: bool
    """Whether it takes too long for all rows of a table."""
    outputs: Sequence[str]
    _run: Callable[..., Any]

    def __call__(self, columns: Mapping[str, Column]) -> np.ndarray:
        """Return the outputs [rows, outputs]."""
        found = self._run(self.outputs, {name: _cells(column) for name, column in columns.items()})
        return np.concatenate(found, 1)


def _cells(column: Column) -> np.ndarray:
    """Return the cells [rows, 1] as an input takes them."""
    if isinstance(column, Categories):
        texts: np.ndarray = np.array([*column.values, ""], object)[column.codes]
        return texts.reshape(-1, 1)
    return column.values.reshape(-1, 1)


def load(content: bytes, outputs: Sequence[str]) -> Runtime:
    """Return the model of a file's content, with its outputs by name. Raises `ConfigError` with an operation that the runtime lacks."""
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        return Runtime("the reference of onnx", True, outputs, ReferenceEvaluator(content).run)
    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal; what is wrong is in the exceptions
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as error:
        operation = str(error).partition("implementation for ")[2].partition("(")[0]
        raise ConfigError(
            f"`--format onnx` must have operations that onnxruntime {onnxruntime.__version__} has, but it lacks {operation} in the "
            "dtype of this run; use --format safetensors, or a run with dtype=float32"
        ) from None
    return Runtime(f"onnxruntime {onnxruntime.__version__}", False, outputs, session.run)
