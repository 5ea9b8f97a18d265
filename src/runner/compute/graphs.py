"""CUDA graphs: recorded sequences of kernels that one launch repeats on the same memory. ROCm calls them HIP graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor


class Graphs(Protocol):
    """A device that records computations and repeats them."""

    def warm_up(self) -> AbstractContextManager[None]:
        """Return the context for computations before their recording, in which libraries allocate the memory they keep."""

    def capture(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record the kernels of a computation without running them.

        The returned function runs them on the tensors that the computation used. It returns the computation's result, which
        its next call overwrites. Raises `RuntimeError` if the computation waits for the device or cannot be recorded.
        """


class CudaGraphs:
    """CUDA or HIP graphs of one device, recorded on a stream of their own, as CUDA requires."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Compute on the stream of the recordings. Work before and after it keeps its order."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def capture(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record the kernels of a computation into a graph with its own memory."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as one that writes a checkpoint, may use the device meanwhile. The outer context restores the
        # current stream after an error, which torch's own does not.
        with (
            torch.cuda.stream(self._stream),
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            result = compute()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
