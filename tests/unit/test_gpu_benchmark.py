"""The measurements of `make gpu`: their cases, their record, and that each kind can be measured, here on the CPU."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks import figures as f
from benchmarks import gpu, gpu_sweep
from benchmarks import gpu_training as training
from benchmarks.figures import QUICK, Bar, Bench, Case, Figure, Journal, Sizes, run_cases
from benchmarks.gpu_training import linreg, network

from runner.data.batches import EpochBatches

CPU = Bench(torch.device("cpu"), QUICK)
GPU = Bench(torch.device("cuda"), Sizes())  # nothing here touches it


def lines(file: Path) -> list[tuple[str, str]]:
    return [(record["kind"], record["name"]) for record in map(json.loads, file.read_text().splitlines())]


def good(name: str) -> Case:
    return Case(name, lambda: [Figure(f"{name} is", 2.0, "s")])


def broken() -> Iterator[Figure]:
    yield Figure("half", 1.0, "s")
    raise ValueError("out of luck")


# --------------------------------------------------------------------------------------------------------- figures, record


@pytest.mark.parametrize(
    ("bar", "value", "met"),
    [(Bar(5), 5.0, True), (Bar(5), 4.9, False), (Bar(1.05, at_least=False), 1.05, True), (Bar(5), math.nan, False),
     (Bar(1.05, at_least=False), 1.06, False), (Bar(1.05, at_least=False), math.nan, False)],
)  # fmt: skip
def test_a_bar_is_met_or_missed(bar: Bar, value: float, met: bool) -> None:
    figure = Figure("a", value, "s", bar, "measured twice")
    assert bar.met(value) is met
    assert figure.record()["met"] is met
    assert ("MISSED" in str(figure)) is not met


def test_a_figure_without_a_bar_meets_and_misses_none() -> None:
    expected = {"value": 3.0, "unit": "s", "bar": None, "met": None, "note": ""}
    assert Figure("a", 3.0, "s").record() == expected


def test_a_case_that_fails_is_recorded_with_its_traceback_and_the_next_one_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lines"
    assert run_cases([good("a"), Case("b", broken), good("c")], CPU, Journal(file))
    assert lines(file) == [
        ("started", "a"), ("figure", "a is"), ("started", "b"), ("figure", "half"), ("failure", "b"), ("started", "c"), ("figure", "c is"),
    ]  # fmt: skip
    (failure,) = (record for record in map(json.loads, file.read_text().splitlines()) if record["kind"] == "failure")
    assert "Traceback" in failure["detail"]
    assert "ValueError: out of luck" in failure["detail"]
    assert "c is: 2 s" in capsys.readouterr().out


def test_no_case_starts_without_the_time_that_it_needs(tmp_path: Path) -> None:
    bench = Bench(CPU.device, QUICK, time.monotonic() + 1_000)
    file = tmp_path / "lines"
    cases = [good("short"), Case("long", broken, seconds=2_000), good("also short")]
    assert run_cases(cases, bench, Journal(file))
    assert ("skipped", "long") in lines(file)
    assert ("figure", "also short is") in lines(file)
    over = Bench(CPU.device, QUICK, time.monotonic())
    assert run_cases([good("late")], over, Journal(file))
    assert json.loads(file.read_text().splitlines()[-1]) == {
        "kind": "skipped", "name": "late", "reason": "no time left",
    }  # fmt: skip


def test_a_new_process_goes_on_after_the_cases_that_were_begun(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    run_cases([good("a")], CPU, Journal(file))
    run_cases([good("a"), good("b")], CPU, Journal(file))
    assert [name for kind, name in lines(file) if kind == "started"] == ["a", "b"]


def test_a_device_that_computes_no_longer_asks_for_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f, "usable", lambda device: False)
    monkeypatch.setitem(gpu.CASES, "bench", lambda bench: iter([Case("b", broken), good("c")]))
    file = tmp_path / "lines"
    assert gpu.main(["bench", "--device", "cpu", "--quick", "--out", str(file)]) == 3
    assert lines(file)[-1] == ("failure", "b")
    assert gpu.main(["bench", "--device", "cpu", "--quick", "--out", str(file)]) == 0
    assert lines(file)[-2:] == [("figure", "c is"), ("end", "bench")]


def test_the_device_is_asked_whether_it_computes() -> None:
    assert f.usable(torch.device("cpu"))
    assert not f.usable(torch.device("meta"))


def test_a_round_is_measured_even_when_the_time_is_over() -> None:
    assert list(Bench(CPU.device, Sizes(rounds=3)).rounds()) == [0, 1, 2]
    assert list(Bench(CPU.device, Sizes(rounds=3), time.monotonic()).rounds()) == [0]


# ------------------------------------------------------------------------------------------------------------------- cases


def test_the_cases_of_training_start_with_captured_steps_and_have_names_of_their_own() -> None:
    names = [case.name for case in training.training_cases(GPU)]
    assert len(names) == len(set(names)) == 2 * 2 * 4 + 2 * 3 + 2
    assert all("CUDA graph" in name for name in names[:8])
    assert all("eager" in name for name in names[8:16])
    assert names[-2:] == ["start-up", "memory"]
    assert GPU.overrides("true") == ["device=auto", "device.threads=1", "train.cuda_graph=true"]


def test_on_a_cpu_nothing_is_captured_and_no_memory_counted() -> None:
    names = [case.name for case in training.training_cases(CPU)]
    assert not any("CUDA graph" in name or name == "memory" for name in names)
    assert CPU.overrides("true") == ["device=cpu", "device.threads=1"]


def test_the_cases_of_sweeps_start_with_the_training_of_1024_trials() -> None:
    cases = list(gpu_sweep.sweep_cases(GPU))
    assert cases[0].name == "linreg, 1,024 trials, training alone"
    assert len({case.name for case in cases}) == len(cases) == 12
    assert cases[-1].seconds > cases[0].seconds


@pytest.mark.parametrize("problem", [linreg(Sizes()), network(Sizes(), 64, 256, 3_000)], ids=lambda p: p.name)
def test_the_rows_between_two_steps_are_counted_as_the_runner_does(problem: training.Problem) -> None:
    batch = None if problem.batch == problem.rows else problem.batch
    batches = EpochBatches(problem.rows, batch, 0, torch.device("cpu"))
    for first, last in ((1, 100), (101, 200), (190, 400)):
        assert problem.samples(first, last) == batches.rows_between(first, last)


def test_the_loop_by_hand_takes_every_row_once_an_epoch() -> None:
    problem = network(QUICK, 8, 64, 4)
    loop = training.HandLoop(CPU, problem, "adam")
    loop._y = torch.arange(float(problem.rows)).unsqueeze(1)
    batches = [loop._batch()[1] for _ in range(-(-problem.rows // problem.batch))]
    assert torch.cat(batches).flatten().sort().values.tolist() == list(range(problem.rows))


# ------------------------------------------------------------------------------------------------------ measured on the CPU


def by_name(figures: Iterator[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


@pytest.mark.parametrize(("optimizer", "update"), [("sgd", "manual"), ("adam", "optimizer")])
def test_a_small_training_is_compared_with_a_loop_by_hand(optimizer: str, update: str) -> None:
    figures = by_name(training.small_steps(CPU, linreg(QUICK), optimizer, update, captured=False))
    name = f"linreg, {optimizer}, update={update}, eager"
    assert list(figures) == [f"{name}: a step", f"{name}: all 20 steps"]
    assert all(math.isfinite(figure.value) and figure.value > 0 for figure in figures.values())
    assert figures[f"{name}: a step"].bar is None


@pytest.mark.parametrize("precision", training.PRECISIONS)
def test_a_wide_network_is_compared_with_the_same_settings_by_hand(precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    (figure,) = training.wide_steps(CPU, network(QUICK, 8, 64, 20), precision, "auto")
    torch.set_float32_matmul_precision(before)
    assert figure.value > 0
    assert str(figure.bar) == "at most 1.05"


def test_start_up_has_the_copy_of_the_data() -> None:
    figures = by_name(training.start_up(CPU, network(QUICK, 8, 64, 20)))
    process, run, copy = figures.values()
    assert 0 < run.value < process.value
    assert copy.unit == "ms"


@pytest.mark.parametrize("measure", [gpu_sweep.training_alone, gpu_sweep.with_files])
def test_a_sweep_is_compared_with_its_trials_one_by_one(measure: gpu_sweep.Measure) -> None:
    for kind in gpu_sweep.kinds(QUICK):
        (figure,) = measure(CPU, kind, 2)
        assert figure.name.startswith(f"{kind.name}, 2 trials: ")
        assert figure.value > 0
        assert figure.bar is None


def test_trials_that_fail_are_no_figure() -> None:
    kind = gpu_sweep.Trials("diverges", (*gpu_sweep.kinds(QUICK)[0].overrides, "optimizer.lr=1e30"))
    with pytest.raises(RuntimeError, match="trials failed"):
        list(gpu_sweep.training_alone(CPU, kind, 2))
