"""Steps, start-up and memory of runs on a GPU, compared with a loop over tensors on the device that an expert would write."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import runner
from benchmarks.figures import Bar, Bench, Case, Figure, Sizes
from runner.config.compose import compose
from runner.data import dataset

GRAPH_BAR, WIDE_BAR = 5.0, 1.05
PRECISIONS = {"float32": ("highest", "off"), "TF32": ("high", "off"), "bfloat16 amp": ("highest", "bfloat16")}
"""Name → `device.matmul_precision` and `amp`."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A training, for the runner and for the loop by hand."""

    name: str
    overrides: tuple[str, ...]
    features: int
    widths: tuple[int, ...]
    rows: int
    """Training rows."""
    batch: int
    steps: int
    record_every: int
    lr: float

    def samples(self, first: int, last: int) -> int:
        """Return the number of rows in the batches of steps `first` to `last`; the last batch of an epoch is smaller."""
        starts = ((step - 1) % -(-self.rows // self.batch) * self.batch for step in range(first, last + 1))
        return sum(min(self.batch, self.rows - start) for start in starts)

    def model(self) -> nn.Module:
        """Return the model as `nn.Sequential`, on the CPU."""
        sizes = [self.features, *self.widths, 1]
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers[:-1])


def linreg(sizes: Sizes) -> Problem:
    """Return the shipped experiment: 90 training rows of one feature."""
    return Problem(
        name="linreg", overrides=("+experiment=linreg",), features=1, widths=(), rows=90, batch=90,
        steps=sizes.linreg_steps, record_every=min(200, sizes.linreg_steps // 4), lr=1e-4,
    )  # fmt: skip


def network(sizes: Sizes, width: int, batch: int, steps: int) -> Problem:
    """Return a network with two hidden layers of a width, on nine features in shuffled batches."""
    overrides = (
        "name=mlp", "data=line", f"data.rows={sizes.mlp_rows}", "data.features=9", "data.standardize=true", "model=mlp",
        f"model.widths=[{width},{width}]", "model.activation=relu", f"train.batch_size={batch}",
    )  # fmt: skip
    return Problem(
        name=f"MLP 9-{width}-{width}-1, batch {batch:,}", overrides=overrides, features=9, widths=(width, width),
        rows=sizes.mlp_rows, batch=batch, steps=steps, record_every=min(100, steps // 4), lr=1e-3,
    )  # fmt: skip


class HandLoop:
    """An eager loop over tensors on the device: fused Adam or SGD, `mse_loss`, gradients set to None."""

    def __init__(self, bench: Bench, problem: Problem, optimizer: str, amp: str = "off") -> None:
        self._bench, self._problem, device = bench, problem, bench.device
        self._x = torch.randn(problem.rows, problem.features, device=device)
        self._y = torch.randn(problem.rows, 1, device=device)
        self._model = problem.model().to(device)
        parameters = list(self._model.parameters())
        self._optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(parameters, lr=problem.lr)
            if optimizer == "sgd"
            else torch.optim.Adam(parameters, lr=problem.lr, fused=True)
        )
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=amp != "off")
        self._step, self._order = 0, torch.empty(0)

    def seconds(self, steps: int) -> float:
        """Take some steps. Return the seconds of one of them."""
        return self._bench.seconds(lambda: self._take(steps)) / steps

    def _take(self, steps: int) -> None:
        for _ in range(steps):
            x, y = self._batch()
            with self._autocast:
                loss = nn.functional.mse_loss(self._model(x), y)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()

    def _batch(self) -> tuple[Tensor, Tensor]:
        rows, batch = self._problem.rows, self._problem.batch
        if batch == rows:
            return self._x, self._y
        at = self._step % -(-rows // batch) * batch
        if at == 0:
            self._order = torch.randperm(rows, device=self._bench.device)
        self._step += 1
        chosen = self._order[at : at + batch]
        return self._x[chosen], self._y[chosen]


@dataclass(frozen=True)
class Trained:
    """Times of a run: seconds of a step between two rows, of all steps, and before the first one."""

    step: float
    all_steps: float
    startup: float
    stepping: str
    """How steps were taken, as the run says."""


def train(problem: Problem, overrides: Sequence[str]) -> Trained:
    """Do a run with its rows, events and checkpoint, but without plots, and return its times."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        arguments = [
            *problem.overrides, f"train.steps={problem.steps}", f"record.every_steps={problem.record_every}",
            f"optimizer.lr={problem.lr}", "record.plots=false", f"run_dir={folder}/run", *overrides,
        ]  # fmt: skip
        run = runner.run(None, arguments)
        log = (run.directory / "run.log").read_text(encoding="utf-8")
        rows = run.rows
    # The first row has the time of capture and of kernels that are loaded. Later ones have that of rows and events.
    paces = [
        problem.samples(a["step"] + 1, b["step"]) / b["samples_per_second"] / (b["step"] - a["step"])
        for a, b in pairwise(rows)
    ]
    stepping = next((line.partition("steps    ")[2] for line in log.splitlines() if "steps    " in line), "")
    timing = run.summary["timing"]
    return Trained(statistics.median(paces), timing["seconds"], timing["startup_seconds"], stepping)


def against_hand(
    bench: Bench, problem: Problem, overrides: Sequence[str], hand: HandLoop
) -> tuple[float, float, list[Trained]]:
    """Return the median ratios hand : ours, of a step and of all steps with all that a run does, and the runs behind them."""
    hand.seconds(bench.sizes.hand_steps)
    pairs = [(train(problem, overrides), hand.seconds(bench.sizes.hand_steps)) for _ in bench.rounds()]
    steps = statistics.median(by_hand / ours.step for ours, by_hand in pairs)
    whole = statistics.median(by_hand * problem.steps / ours.all_steps for ours, by_hand in pairs)
    return steps, whole, [ours for ours, _ in pairs]


def _note(ratio: float, runs: Sequence[Trained]) -> str:
    step = statistics.median(run.step for run in runs)
    stepping = f"; {runs[-1].stepping}" if runs[-1].stepping else ""
    return f"a step {step * 1e6:.1f} µs, by hand {ratio * step * 1e6:.1f} µs, rounds: {len(runs)}{stepping}"


def small_steps(bench: Bench, problem: Problem, optimizer: str, update: str, captured: bool) -> Iterator[Figure]:
    """Yield how many times as fast as the loop by hand a step is, and a whole training."""
    torch.set_float32_matmul_precision("highest")
    overrides = [
        *bench.overrides("true" if captured else "false"), f"optimizer={optimizer}", f"update={update}",
    ]  # fmt: skip
    hand = HandLoop(bench, problem, optimizer)
    steps, whole, runs = against_hand(bench, problem, overrides, hand)
    name = _small_name(problem, optimizer, update, captured)
    bar = Bar(GRAPH_BAR) if captured else None
    yield Figure(f"{name}: a step", steps, "times as fast as by hand", bar, _note(steps, runs))
    seconds = statistics.median(run.all_steps for run in runs)
    note = f"{seconds:.3g} s with capture, rows, events and checkpoint"
    yield Figure(f"{name}: all {problem.steps:,} steps", whole, "times as fast as by hand", None, note)


def _small_name(problem: Problem, optimizer: str, update: str, captured: bool) -> str:
    return f"{problem.name}, {optimizer}, update={update}, {'CUDA graph' if captured else 'eager'}"


def wide_steps(bench: Bench, problem: Problem, precision: str, graph: str) -> Iterator[Figure]:
    """Yield the time of a step of a wide network, relative to that of a loop by hand with the same settings."""
    matmul, amp = PRECISIONS[precision]
    torch.set_float32_matmul_precision(matmul)
    overrides = [*bench.overrides(graph), "optimizer=adam", f"device.matmul_precision={matmul}", f"amp={amp}"]
    steps, _, runs = against_hand(bench, problem, overrides, HandLoop(bench, problem, "adam", amp))
    name = f"{problem.name}, adam, {precision}, train.cuda_graph={graph}: a step"
    yield Figure(name, 1 / steps, "times as long as by hand", Bar(WIDE_BAR, at_least=False), _note(steps, runs))


def start_up(bench: Bench, problem: Problem) -> Iterator[Figure]:
    """Yield the seconds before the first step, in a new process and in this one, and those of the copy to the device."""
    arguments = [*problem.overrides, *bench.overrides(), "train.steps=2", "record.plots=false"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "runner", *arguments, f"run_dir={folder}/run"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
        timing = json.loads((Path(folder) / "run/summary.json").read_text(encoding="utf-8"))["timing"]
    yield Figure("start-up of a process, before the first step", timing["startup_seconds"], "s", None, problem.name)
    warm = statistics.median(train(problem, bench.overrides()).startup for _ in bench.rounds())
    yield Figure("start-up of a further run, before the first step", warm, "s", None, problem.name)
    config = compose(arguments, None).config
    parts = dataset.build(config.data, config.seed, torch.float32, torch.device("cpu")).parts.values()
    tensors = [tensor for rows in parts for tensor in (rows.all.numbers, rows.all.target)]
    copy = statistics.median(bench.seconds(lambda: [t.to(bench.device) for t in tensors]) for _ in bench.rounds())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20
    yield Figure("copy of the data to the device", copy * 1000, "ms", None, f"{size:.3g} MiB, part of both above")


def memory(bench: Bench, problem: Problem) -> Iterator[Figure]:
    """Yield the most memory that tensors took during a run, relative to a loop by hand."""
    ours, by_hand = (
        peak_bytes(bench, work)
        for work in (
            lambda: train(problem, [*bench.overrides(), "optimizer=adam"]),
            lambda: HandLoop(bench, problem, "adam").seconds(bench.sizes.hand_steps),
        )
    )
    note = f"{ours / 2**20:,.0f} MiB, by hand {by_hand / 2**20:,.0f} MiB"
    yield Figure(f"{problem.name}, adam: most memory", ours / by_hand, "times as much as by hand", None, note)


def peak_bytes(bench: Bench, work: Callable[[], Any]) -> int:
    """Return the most bytes that tensors took on the device during some work, above what was taken before."""
    bench.free()
    bench.module.reset_peak_memory_stats()
    before = bench.module.memory_allocated()
    work()
    bench.module.synchronize()
    return int(bench.module.max_memory_allocated()) - int(before)


def training_cases(bench: Bench) -> Iterator[Case]:
    """Yield the cases of `bench`, the most important ones first."""
    sizes, on_gpu = bench.sizes, bench.device.type != "cpu"
    small = (linreg(sizes), network(sizes, 64, 256, sizes.mlp_steps))
    updates = (("sgd", "optimizer"), ("adam", "optimizer"), ("sgd", "manual"), ("adam", "manual"))
    for captured, (optimizer, update), problem in product((True, False) if on_gpu else (False,), updates, small):
        yield Case(
            _small_name(problem, optimizer, update, captured),
            lambda p=problem, o=optimizer, u=update, c=captured: small_steps(bench, p, o, u, c),  # type: ignore[misc]
        )
    wide = network(sizes, sizes.wide, sizes.wide_batch, sizes.wide_steps)
    for graph, precision in product(("false", "auto") if on_gpu else ("auto",), PRECISIONS):
        yield Case(
            f"{wide.name}, {precision}, train.cuda_graph={graph}",
            lambda p=precision, g=graph: wide_steps(bench, wide, p, g),  # type: ignore[misc]
        )
    yield Case("start-up", lambda: start_up(bench, small[1]))
    if on_gpu:
        yield Case("memory", lambda: memory(bench, wide))
