"""Measure training and sweeps on a GPU, against loops by hand and single runs in the same process: medians of interleaved rounds.

    python benchmarks/gpu.py bench|sweep [--seconds S] [--out FILE] [--device cpu] [--quick]

`bench` compares the steps of a run, with its rows, events and checkpoint, with a loop over tensors on the device that an expert
would write. `sweep` compares vmapped sweeps with the same trials one by one, of which only some are timed. Every figure is
printed at once, and appended to FILE as a line of JSON. A case that fails is recorded with its traceback, and the next one
starts. Cases for which no time is left are recorded as skipped. A case that FILE names already is left out, so the same
command continues after a crash. `docs/gpu.py` calls this and writes the page.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import runner
from runner.compute import devices
from runner.compute.processes import SingleProcess
from runner.config.compose import compose
from runner.data import dataset
from runner.training import build, vmapped
from runner.training.run_state import Calendar

PARTS = ("bench", "sweep")
GRAPH_BAR, WIDE_BAR, SWEEP_BAR = 5.0, 1.05, 100.0
PRECISIONS = {"float32": ("highest", "off"), "TF32": ("high", "off"), "bfloat16 amp": ("highest", "bfloat16")}
"""Name → `device.matmul_precision` and `amp`."""


# ------------------------------------------------------------------------------------------------- figures and their record


@dataclass(frozen=True)
class Bar:
    """Limit that a figure must not fall below, or with `at_least=False` must not exceed."""

    limit: float
    at_least: bool = True

    def __str__(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g}"

    def met(self, value: float) -> bool:
        """Whether a value meets the bar; nan never does."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Figure:
    """One measured number. `note` has the numbers behind a ratio."""

    name: str
    value: float
    unit: str
    bar: Bar | None = None
    note: str = ""

    def record(self) -> dict[str, Any]:
        """Return the entries of the figure's line in the file."""
        bar, met = (None, None) if self.bar is None else (str(self.bar), self.bar.met(self.value))
        return {"value": self.value, "unit": self.unit, "bar": bar, "met": met, "note": self.note}

    def __str__(self) -> str:
        verdict = "" if self.bar is None else f"  {self.bar}: {'met' if self.bar.met(self.value) else 'MISSED'}"
        return f"{self.name}: {self.value:.4g} {self.unit}{verdict}  ({self.note})"


@dataclass(frozen=True)
class Case:
    """Something to measure, under a name that no other case has. It is skipped if less than `seconds` are left."""

    name: str
    measure: Callable[[], Iterable[Figure]]
    seconds: float = 0.0


class Journal:
    """Prints what happens, and appends it to a file line by line, so that a killed process loses nothing."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file is not None and file.exists() else []
        self.begun = {record["name"] for record in map(json.loads, lines) if record["kind"] == "started"}
        """Cases that an earlier process has begun."""

    def write(self, kind: str, name: str, text: str, **values: Any) -> None:
        """Print a text, and append a line with these values."""
        print(text, flush=True)
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, "name": name, **values}) + "\n")


# ------------------------------------------------------------------------------------------------------------ what is timed


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    rounds: int = 3
    linreg_steps: int = 5_000
    mlp_steps: int = 3_000
    mlp_rows: int = 50_000
    wide: int = 1024
    wide_batch: int = 4096
    wide_steps: int = 1_000
    hand_steps: int = 500
    """Steps of the loop by hand in one round; a step of it always costs the same."""
    trials: tuple[int, ...] = (1024, 64, 4096)
    """Sizes of sweeps, the most important one first."""
    trial_steps: int = 2_000
    singles: int = 4
    """Runs that are timed one by one, after a first one that is not counted."""


QUICK = Sizes(
    rounds=1, linreg_steps=20, mlp_steps=20, mlp_rows=500, wide=8, wide_batch=64, wide_steps=20, hand_steps=5,
    trials=(8, 2), trial_steps=20, singles=1,
)  # fmt: skip
"""Sizes that only show that everything can be measured."""


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


@dataclass(frozen=True)
class Bench:
    """The device, how much is measured, and the time by which all of it must have ended (`time.monotonic`)."""

    device: torch.device
    sizes: Sizes
    ends: float = float("inf")

    @property
    def module(self) -> Any:
        """The torch module of the device, such as `torch.cuda`, which also serves ROCm."""
        return torch.get_device_module(self.device)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.ends - time.monotonic()

    def rounds(self) -> Iterator[int]:
        """Yield the numbers of the rounds: at least one, and no further one when the time is over."""
        for number in range(self.sizes.rounds):
            if number == 0 or self.left() > 0:
                yield number

    def overrides(self, graph: str = "auto") -> list[str]:
        """Return the overrides that choose the device, and whether its steps are captured as a CUDA graph."""
        if self.device.type == "cpu":
            return ["device=cpu", "device.threads=1"]
        return ["device=auto", "device.threads=1", f"train.cuda_graph={graph}"]

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return the seconds of some work, until the device has done it."""
        self.module.synchronize()
        began = time.perf_counter()
        work()
        self.module.synchronize()
        return time.perf_counter() - began

    def free(self) -> None:
        """Free the memory of earlier cases."""
        gc.collect()
        if hasattr(self.module, "empty_cache"):
            self.module.empty_cache()


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


# ------------------------------------------------------------------------------------------------------------------ training


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
    tensors = [tensor for rows in parts for tensor in (rows.features, rows.target)]
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


# -------------------------------------------------------------------------------------------------------------------- sweeps


@dataclass(frozen=True)
class Trials:
    """A kind of trial: its name, and the overrides of every trial."""

    name: str
    overrides: tuple[str, ...]


Measure = Callable[[Bench, Trials, int], Iterator[Figure]]
"""A way to compare a sweep of so many trials with single runs."""


def kinds(sizes: Sizes) -> tuple[Trials, ...]:
    """Return the kinds of trials that are swept."""
    steps = f"train.steps={sizes.trial_steps}"
    small = (
        "name=mlp", "data=line", "data.rows=1000", "data.features=9", "data.standardize=true", "model=mlp", "model.widths=[32]",
        "optimizer=adam", "optimizer.lr=1e-3", "train.batch_size=64", "record.every_steps=200", steps,
    )  # fmt: skip
    return Trials("linreg", ("+experiment=linreg", steps)), Trials("MLP 9-32-1, batch 64", small)


@dataclass
class _Unsaved:
    """A saver that keeps nothing."""

    def save(self, step: int, state: Any, best: bool) -> None:
        """Keep nothing."""

    def check(self) -> None:
        """Report nothing."""


class _NeverStop:
    def requested(self, step: int) -> int | None:
        """Return None: no signal is waited for."""
        return None


def program(bench: Bench, overrides: Sequence[str], trials: int) -> Any:
    """Return the parts of one run, or of several as lanes, with seeds from 0."""
    config = compose([*overrides, *bench.overrides()], None).config
    choice = devices.set_up_device(config, None, SingleProcess())
    resolved = build.resolve(config, choice, 1)
    configs = [replace(resolved, seed=seed) for seed in range(trials)]
    prepared = [build.prepare(config, choice, 1)[0] for config in configs]
    if trials == 1:
        return build.build(resolved, prepared[0], SingleProcess())
    infos = [vmapped.run_info_of_lane(config, inputs, trials) for config, inputs in zip(configs, prepared, strict=True)]
    return vmapped.build(infos, [inputs.model for inputs in prepared])


def loop_seconds(bench: Bench, parts: Any, steps: int) -> float:
    """Train all lanes of a program for some steps in the runner's own loop, without any file. Return the seconds."""
    infos = parts.infos if hasattr(parts, "infos") else [parts.info]
    states = [info.run_state([], _Unsaved(), None) for info in infos]
    loop = parts.loop(states, _NeverStop())
    loop.calendar = Calendar(steps, record_every=steps, evaluate_every=None, checkpoint_every=None)
    seconds = bench.seconds(loop.run)
    failures = [state.failure for state in states if state.failure is not None]
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(states)} trials failed") from failures[0]
    return seconds


def step_seconds(bench: Bench, parts: Any) -> float:
    """Return the seconds of one step of all lanes: the difference of two trainings, so that their fixed costs cancel."""
    few = max(1, bench.sizes.trial_steps // 4)
    short = loop_seconds(bench, parts, few)
    return (loop_seconds(bench, parts, few + bench.sizes.trial_steps) - short) / bench.sizes.trial_steps


def training_alone(bench: Bench, kind: Trials, trials: int) -> Iterator[Figure]:
    """Yield how many times as fast the steps of a program of all trials are as those of single runs, one after another."""
    one, all_trials = (program(bench, kind.overrides, count) for count in (1, trials))
    for parts in (one, all_trials):
        loop_seconds(bench, parts, 10)
    pairs = [(step_seconds(bench, one), step_seconds(bench, all_trials)) for _ in bench.rounds()]
    ratio = statistics.median(trials * single / many for single, many in pairs)
    single, many = (statistics.median(times) for times in zip(*pairs, strict=True))
    note = f"a step of all {many * 1e6:,.1f} µs, of one {single * 1e6:,.1f} µs, rounds: {len(pairs)}"
    bar = Bar(SWEEP_BAR) if trials == 1024 else None
    yield Figure(f"{kind.name}, {trials:,} trials: training alone", ratio, "times as fast as one by one", bar, note)


def with_files(bench: Bench, kind: Trials, trials: int) -> Iterator[Figure]:
    """Yield how many times as fast a whole sweep with all its files is as single runs with theirs."""
    arguments = [*kind.overrides, *bench.overrides(), "record.plots=false"]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        singles = [
            bench.seconds(
                lambda n=number: runner.run(None, [*arguments, f"seed={n}", f"run_dir={folder}/{n}"])  # type: ignore[misc]
            )
            for number in range(bench.sizes.singles + 1)
        ][1:]
        results: list[Any] = []
        sweep = [*arguments, f"seeds={trials}", f"run_dir={folder}/sweep"]
        seconds = bench.seconds(lambda: results.append(runner.multirun(None, sweep)[1]))
    if any(member.state != "finished" for member in results[0].members):
        raise RuntimeError(results[0].counts)
    single = statistics.mean(singles)
    note = f"{seconds:,.1f} s, one by one {single:.3g} s each ({len(singles)} timed)"
    ratio = trials * single / seconds
    yield Figure(f"{kind.name}, {trials:,} trials: with all files", ratio, "times as fast as one by one", None, note)


def sweep_cases(bench: Bench) -> Iterator[Case]:
    """Yield the cases of `sweep`, the most important ones first."""
    for trials, measure, kind in product(bench.sizes.trials, (training_alone, with_files), kinds(bench.sizes)):
        name = f"{kind.name}, {trials:,} trials, {measure.__name__.replace('_', ' ')}"
        # Building a trial takes about 3 ms on one core, and its files 15 ms.
        seconds = trials * (0.004 if measure is training_alone else 0.02)
        yield Case(name, lambda m=measure, k=kind, t=trials: m(bench, k, t), seconds)  # type: ignore[misc]


# ----------------------------------------------------------------------------------------------------------------- all cases


def run_cases(cases: Iterable[Case], bench: Bench, journal: Journal) -> bool:
    """Measure every case that was not begun before, while there is time. Return whether all were tried.

    They are not when a case has left the device unusable: a new process must go on.
    """
    for case in cases:
        if case.name in journal.begun:
            continue
        if bench.left() <= case.seconds:
            journal.write("skipped", case.name, f"skipped: {case.name}: no time left", reason="no time left")
            continue
        journal.write("started", case.name, f"… {case.name}")
        try:
            for figure in case.measure():
                journal.write("figure", figure.name, str(figure), **figure.record())
        except Exception:
            text = traceback.format_exc()
            journal.write("failure", case.name, f"FAILED: {case.name}\n{text}", detail=text)
            if not usable(bench.device):
                return False
        with contextlib.suppress(Exception):
            bench.free()
    return True


def usable(device: torch.device) -> bool:
    """Whether the device still computes: after some errors, every further call in the process fails."""
    try:
        return torch.ones(2, device=device).sum().item() == 2
    except Exception:
        return False


@dataclass(frozen=True)
class Options:
    """The command line."""

    part: str
    seconds: float = float("inf")
    out: Path | None = None
    device: str = "cuda"
    quick: bool = field(default=False)


def options(arguments: Sequence[str]) -> Options:
    """Return the command line. Exits with 2 if it cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no case starts after this many seconds")
    parser.add_argument("--out", type=Path, help="file to which lines of JSON are appended")
    parser.add_argument("--device", default="cuda", help="torch's name of the device (cuda serves ROCm, too)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, only to see that everything can be measured")
    return Options(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str]) -> int:
    """Measure one part. Return 0 if all its cases were tried, and 3 if a new process must go on."""
    chosen = options(arguments)
    bench = Bench(torch.device(chosen.device), QUICK if chosen.quick else Sizes(), time.monotonic() + chosen.seconds)
    journal = Journal(chosen.out)
    cases = {"bench": training_cases, "sweep": sweep_cases}[chosen.part]
    if not run_cases(cases(bench), bench, journal):
        return 3
    journal.write("end", chosen.part, f"{chosen.part}: all cases were tried")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
