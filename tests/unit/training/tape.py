"""Graphs on the CPU: operations are recorded, and repeated on the same memory with the same numbers, as a CUDA graph does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READ = torch.ops.aten._local_scalar_dense.default


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operations while they are computed, and the values that tensors from outside had before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self._known: set[int] = set()
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation is READ:
            raise RuntimeError("operation not permitted when stream is capturing")
        for tensor in self._tensors((args, kwargs)):
            storage = tensor.untyped_storage().data_ptr()
            if storage not in self._known:
                self._known.add(storage)
                self._before.append((tensor, tensor.clone()))
        result = operation(*args, **(kwargs or {}))
        self._known.update(tensor.untyped_storage().data_ptr() for tensor in self._tensors(result))
        self.operations.append((operation, args, kwargs or {}, result))
        return result

    @staticmethod
    def _tensors(values: Any) -> list[Tensor]:
        return [value for value in tree_leaves(values) if isinstance(value, Tensor)]

    def undo(self) -> None:
        """Give every tensor from outside its value from before the recording."""
        for tensor, value in self._before:
            tensor.copy_(value)

    def repeat(self) -> None:
        """Compute all operations again, on the memory of the recording."""
        with torch.no_grad():
            for operation, args, kwargs, recorded in self.operations:
                result = operation(*args, **kwargs)
                for old, new in zip(self._tensors(recorded), self._tensors(result), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Tape:
    """Implements `runner.compute.graphs.Graphs` on the CPU."""

    def __init__(self) -> None:
        self.recordings: list[Recorder] = []

    def warm_up(self) -> AbstractContextManager[None]:
        """Return an empty context: the CPU has no streams."""
        return nullcontext()

    def capture(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record a computation, undo it, and return the function that repeats it."""
        recorder = Recorder()
        with recorder:
            result = compute()
        with torch.no_grad():
            recorder.undo()
        self.recordings.append(recorder)

        def replay() -> Tensor:
            recorder.repeat()
            return result

        return replay
