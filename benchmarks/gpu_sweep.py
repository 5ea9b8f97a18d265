"""Vmapped sweeps on a GPU, compared with the same trials one by one, of which only some are timed."""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import runner
from benchmarks.figures import Bar, Bench, Case, Figure, Sizes
from runner.compute import devices
from runner.compute.processes import SingleProcess
from runner.config.compose import compose
from runner.training import build, vmapped
from runner.training.run_state import Calendar

SWEEP_BAR = 100.0


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

    def save(self, step: int, state: Any, best: bool, *, first: Any = None) -> None:
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
        # Steps of each size of a batch are captured, where they are, before any is timed.
        loop_seconds(bench, parts, max(1, bench.sizes.trial_steps // 4))
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
