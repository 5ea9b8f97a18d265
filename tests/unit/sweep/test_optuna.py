"""The search led by Optuna, with a launcher whose trials are plain functions of their overrides."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from runner.config.hydra_adapter import CONF
from runner.errors import ConfigError, Diverged
from runner.sweep.journal import Journal
from runner.sweep.manifest import Manifest
from runner.sweep.optuna_options import OptunaOptions
from runner.sweep.optuna_sweeper import JOURNAL, Search

Values = dict[str, float]
XY = ["x=interval(-1,1.5)", "y=interval(-1,1.5)"]
GRID = ["x=choice(1,2,3,4,0,9,1.5,8)"]


def options(**changes: Any) -> dict[str, Any]:
    """Return the options in conf, with changes."""
    values = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(CONF / "hydra/sweeper/optuna.yaml")))
    del values["_target_"]
    return values | changes


def valley(values: Values) -> Mapping[str, float]:
    return {"valid/rmse": (values["x"] - 0.3) ** 2 + 10 * (values["y"] + 0.2) ** 2}


class Fake:
    """Runs a trial as a function of its values. It raises `KeyboardInterrupt` before the trial `stop_before`."""

    def __init__(self, trial: Callable[[Values], Mapping[str, float]] = valley, stop_before: int | None = None) -> None:
        self.trial = trial
        self.stop_before = stop_before
        self.overrides: dict[int, list[str]] = {}
        self.batches: list[list[int]] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        numbers = [initial_job_idx + k for k in range(len(job_overrides))]
        self.batches.append(numbers)
        return [self._run(number, list(overrides)) for number, overrides in zip(numbers, job_overrides, strict=True)]

    def _run(self, number: int, overrides: list[str]) -> JobReturn:
        if number == self.stop_before:
            raise KeyboardInterrupt
        assert number not in self.overrides, "run twice"
        self.overrides[number] = overrides
        try:
            found = self.trial(
                {name: float(text) for name, _, text in (override.partition("=") for override in overrides)}
            )
        except Diverged as error:
            return JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=error)
        return JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=found)


class Lockstep(Fake):
    """Reports a row of every trial at steps 10, 20 and 30, as the vmap launcher does; x is the loss at every step."""

    watch: Any = None
    name = "valid/rmse"

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        returns = list(super().launch(job_overrides, initial_job_idx))
        for step in (10, 20, 30):
            for number, returned in enumerate(returns, initial_job_idx):
                found = returned.return_value
                row = {"train/loss": 0.0, self.name: found["valid/rmse"]}
                if "pruned" not in found and self.watch is not None and self.watch(number, step, row):
                    returned.return_value = {"pruned": True, **found}
        return returns

    def pruned(self, directory: Path) -> list[int]:
        return [trial.number for trial in trials(directory) if trial.state.name == "PRUNED"]


def identity(values: Values) -> Mapping[str, float]:
    return {"valid/rmse": values["x"]}


def trials(directory: Path, name: str = "sweep", file: Path | None = None) -> list[optuna.trial.FrozenTrial]:
    """Read the trials from the journal with Optuna's own backend."""
    backend = optuna.storages.journal.JournalFileBackend(str(file or directory / JOURNAL))
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend)).trials


def sweep(directory: Path, launcher: Fake, overrides: Sequence[str] = XY, **changes: Any) -> list[dict[str, Any]]:
    """Run a search; where it shares a study, its manifest says which sweep it is."""
    if "storage" in changes and not (directory / "sweep.json").exists():
        Manifest.create(directory, {"name": "some", "task": list(overrides)})
    return cast("list[dict[str, Any]]", Search(options(**changes)).sweep(overrides, launcher, directory)["best"])


def test_every_option_has_a_value_and_a_meaning() -> None:
    assert set(options()) == {field.name for field in dataclasses.fields(OptunaOptions)}


def test_tpe_comes_closer_than_random_with_as_many_trials(tmp_path: Path) -> None:
    gains = []
    for seed in range(2):
        best = {}
        for sampler in ("tpe", "random"):
            directory = tmp_path / f"{sampler}{seed}"
            (found,) = sweep(directory, Fake(), n_trials=96, n_jobs=8, sampler=sampler, seed=seed)
            best[sampler] = found["metrics"]["valid/rmse"]
            assert best[sampler] == min(trial.values[0] for trial in trials(directory))
        gains.append(best["random"] / best["tpe"])
    # Over ten seeds the geometric mean of the gain is 10; random draws do not reach 4.
    assert math.prod(gains) > 4**2


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "qmc", "nsgaii", "random"])
def test_every_sampler_proposes_within_the_space(sampler: str, tmp_path: Path) -> None:
    launcher = Fake(lambda v: {"valid/rmse": v["lr"] * v["k"] + v["w"]})
    overrides = ["lr=tag(log, interval(1e-4,1e-1))", "k=range(2,9,step=3)", "w=choice(1,2)"]
    sweep(tmp_path, launcher, overrides, n_trials=12, n_jobs=4, sampler=sampler)
    assert launcher.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [trial.state.name for trial in trials(tmp_path)] == ["COMPLETE"] * 12
    points = [dict(override.split("=") for override in overrides) for overrides in launcher.overrides.values()]
    assert all(1e-4 <= float(p["lr"]) <= 1e-1 and p["k"] in "258" and p["w"] in "12" for p in points)
    # A child of NSGA-II has most values from its parents; the other samplers draw every number anew.
    assert len({p["lr"] for p in points}) == 12 or sampler == "nsgaii"


def test_the_values_of_a_trial_are_drawn_independently(tmp_path: Path) -> None:
    sweep(tmp_path, Fake(), n_trials=100, sampler="random")
    x, y = ([trial.params[name] for trial in trials(tmp_path)] for name in ("x", "y"))
    # The correlation of 100 independent pairs has a standard deviation of 0.1.
    assert abs(statistics.correlation(x, y)) < 0.4


def test_qmc_fills_the_space_evenly(tmp_path: Path) -> None:
    sweep(tmp_path, Fake(), n_trials=65, n_jobs=1, sampler="qmc")
    for name in ("x", "y"):
        # The first trial defines the space. Of the 64 Sobol points after it, every eighth of an axis has eight.
        eighths = [int((trial.params[name] + 1) / 2.5 * 8) for trial in trials(tmp_path)[1:]]
        assert sorted(eighths) == [k for k in range(8) for _ in range(8)]


def test_the_grid_has_every_combination_once_and_then_ends(tmp_path: Path) -> None:
    launcher = Fake(lambda v: {"valid/rmse": v["a"] + v["b"] + v["c"]})
    overrides = ["a=1,2", "b=range(0,3)", "c=range(0.1,0.4,step=0.1)"]
    sweep(tmp_path, launcher, overrides, n_trials=100, n_jobs=8, sampler="grid")
    points = [(a, b, c) for a in (1, 2) for b in (0, 1, 2) for c in (0.1, 0.2, 0.3)]
    assert list(launcher.overrides.values()) == [[f"a={a}", f"b={b}", f"c={c}"] for a, b, c in points]


def test_a_grid_of_more_combinations_than_trials_is_cut(tmp_path: Path) -> None:
    launcher = Fake(identity)
    sweep(tmp_path, launcher, GRID, n_trials=5, n_jobs=4, sampler="grid")
    assert list(launcher.overrides.values()) == [[f"x={x}"] for x in (1, 2, 3, 4, 0)]


def test_only_the_seed_changes_the_search(tmp_path: Path) -> None:
    found = []
    for run, seed in enumerate((3, 3, 4)):
        launcher = Fake()
        sweep(tmp_path / str(run), launcher, n_trials=24, n_jobs=8, seed=seed)
        found.append(launcher.overrides)
    assert found[0] == found[1]
    assert not {tuple(overrides) for overrides in found[0].values()} & {
        tuple(overrides) for overrides in found[2].values()
    }


def test_several_metrics_give_the_pareto_front(tmp_path: Path) -> None:
    def trial(values: Values) -> Mapping[str, float]:
        return {
            "valid/rmse": values["x"] ** 2 + values["y"] ** 2,
            "train/r2": -((values["x"] - 1) ** 2 + values["y"] ** 2),
        }

    search = Search(options(n_trials=160, n_jobs=20, metric=["valid/rmse", "train/r2"]))
    best = search.sweep(XY, Fake(trial), tmp_path)["best"]
    assert (search.metric, search.directions) == (["valid/rmse", "train/r2"], ["minimize", "maximize"])
    points = {trial.number: (trial.values[0], -trial.values[1]) for trial in trials(tmp_path)}
    beaten = {
        n for n, (a, b) in points.items() if any(c <= a and d <= b and (c, d) != (a, b) for c, d in points.values())
    }
    assert len(points) == 160
    assert {found["number"] for found in best} == points.keys() - beaten
    assert all("NSGAIISampler:generation" in trial.system_attrs for trial in trials(tmp_path))
    # The front has y = 0, and later trials are nearer to it: by 0.6 to 0.8 for seeds 0 to 4, by 0.9 to 1.1 for random draws.
    distances = [abs(trial.params["y"]) for trial in trials(tmp_path)]
    assert sum(distances[80:]) < 0.85 * sum(distances[:80])


@pytest.mark.parametrize(
    ("metric", "direction", "metrics", "expected"),
    [
        (None, None, {"train/rmse": 2.0, "valid/rmse": 1.0}, ("valid/rmse", ["minimize"])),
        (None, None, {"train/rmse": 2.0, "test/rmse": 1.0}, ("train/rmse", ["minimize"])),
        ("valid/r2", None, {"valid/r2": 0.5}, ("valid/r2", ["maximize"])),
        ("valid/r2", "minimize", {"valid/r2": 0.5}, ("valid/r2", ["minimize"])),
        ("test/mae", None, {"test/mae": 0.5}, ("test/mae", ["minimize"])),
    ],
)  # fmt: skip
def test_metric_and_direction(
    metric: Any, direction: Any, metrics: dict[str, float], expected: Any, tmp_path: Path
) -> None:
    search = Search(options(n_trials=2, metric=metric, direction=direction))
    search.sweep(XY, Fake(lambda values: metrics), tmp_path)
    assert (search.metric, search.directions) == expected
    assert [trial.values for trial in trials(tmp_path)] == [[metrics[expected[0]]]] * 2
    # A resumed sweep with nothing left to do has them as well.
    again = Search(options(n_trials=2, metric=metric, direction=direction))
    again.sweep(XY, Fake(), tmp_path)
    assert (again.metric, again.directions) == expected


def test_a_failed_or_non_finite_trial_is_never_the_best(tmp_path: Path) -> None:
    def trial(values: Values) -> Mapping[str, float]:
        if values["x"] == 1:
            raise Diverged("training diverged")
        return {"valid/rmse": {2: math.nan, 3: -math.inf}.get(int(values["x"]), values["x"])}

    (best,) = sweep(tmp_path, Fake(trial), ["x=range(1,7)"], sampler="grid", n_jobs=6)
    assert [trial.state.name for trial in trials(tmp_path)] == ["FAIL"] * 3 + ["COMPLETE"] * 3
    assert best == {"number": 3, "metrics": {"valid/rmse": 4.0}, "overrides": ["x=4"]}


def test_a_search_ends_if_all_trials_fail(tmp_path: Path) -> None:
    def trial(values: Values) -> Mapping[str, float]:
        raise Diverged("training diverged")

    assert sweep(tmp_path, Fake(trial), n_trials=6, n_jobs=4) == []


# Stopping and resuming.


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsgaii", "cmaes", "qmc", "gp"])
@pytest.mark.parametrize("stop_before", [0, 9, 12])
def test_an_interrupted_sweep_has_the_same_trials(sampler: str, stop_before: int, tmp_path: Path) -> None:
    whole = Fake()
    sweep(tmp_path / "whole", whole, n_trials=14, n_jobs=4, sampler=sampler)
    stopped = Fake(stop_before=stop_before)
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path / "stopped", stopped, n_trials=14, n_jobs=4, sampler=sampler)
    before = stopped.batches
    stopped.stop_before, stopped.batches, stopped.overrides = None, [], {}
    sweep(tmp_path / "stopped", stopped, n_trials=14, n_jobs=4, sampler=sampler)
    assert before[:-1] + stopped.batches == whole.batches
    assert stopped.overrides == {n: overrides for n, overrides in whole.overrides.items() if n >= stopped.batches[0][0]}
    assert [t.params for t in trials(tmp_path / "stopped")] == [t.params for t in trials(tmp_path / "whole")]
    assert {t.state.name for t in trials(tmp_path / "stopped")} == {"COMPLETE"}


def test_a_kill_at_any_time_loses_nothing_and_runs_nothing_twice(tmp_path: Path) -> None:
    """Whatever part of the journal is on the disk, even a part of a line, the resumed sweep ends the same."""
    # TPE draws the values of the first ten trials independently, and those of later trials jointly.
    settings: dict[str, Any] = {"n_trials": 14, "n_jobs": 4}
    whole = Fake()
    best = sweep(tmp_path / "whole", whole, **settings)
    journal = (tmp_path / "whole" / JOURNAL).read_bytes()
    (tmp_path / "cut").mkdir()
    ends = [length for length in range(len(journal)) if journal[:length].endswith(b"\n")]
    for length in [*ends, *(end + 40 for end in ends[::9]), len(journal) - 1]:
        (tmp_path / "cut" / JOURNAL).write_bytes(journal[:length])
        stored = [json.loads(line)["trial_id"] for line in journal[:length].split(b"\n")[:-1] if b'"op_code":6' in line]
        launcher = Fake()
        assert sweep(tmp_path / "cut", launcher, **settings) == best
        assert launcher.overrides == {
            number: overrides for number, overrides in whole.overrides.items() if number not in stored
        }
        assert [t.params for t in trials(tmp_path / "cut")] == [t.params for t in trials(tmp_path / "whole")]


def test_n_trials_can_be_increased_later(tmp_path: Path) -> None:
    sweep(tmp_path, Fake(), n_trials=5, n_jobs=4)
    launcher = Fake()
    sweep(tmp_path, launcher, n_trials=9, n_jobs=4)
    assert launcher.batches == [[5, 6, 7], [8]]


def test_sweeps_that_share_a_study_keep_their_own_trials(tmp_path: Path) -> None:
    shared: dict[str, Any] = {
        "n_trials": 12,
        "n_jobs": 4,
        "storage": str(tmp_path / "shared.log"),
        "study_name": "both",
    }
    one, other = Fake(stop_before=2), Fake()
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path / "one", one, **shared)
    sweep(tmp_path / "other", other, **shared)
    assert other.batches == [[4, 5, 6, 7], [8, 9, 10, 11]]
    one = Fake()
    (tmp_path / "one").rename(tmp_path / "moved")
    sweep(tmp_path / "moved", one, **shared)
    assert one.batches == [[0, 1, 2, 3]]
    both = trials(tmp_path, "both", tmp_path / "shared.log")
    assert [trial.state.name for trial in both] == ["COMPLETE"] * 12
    assert len({str(trial.params) for trial in both}) == 12


def test_numbers_with_a_gap_are_launched_separately(tmp_path: Path) -> None:
    """A launcher numbers its trials from the first, and another sweep has a number in between."""
    storage = tmp_path / "shared.log"
    shared: dict[str, Any] = {"n_trials": 4, "n_jobs": 4, "storage": str(storage)}
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path / "one", Fake(stop_before=0), **shared)
    lines = [json.loads(line) for line in storage.read_text().splitlines()]
    for line in lines:
        if line.get("trial_id") == 1 and "user_attr" in line:
            line["user_attr"] = {"sweep": "another"}
    storage.write_text("".join(json.dumps(line) + "\n" for line in lines))
    launcher = Fake()
    sweep(tmp_path / "one", launcher, **shared)
    assert launcher.batches == [[0], [2, 3]]


def test_a_partial_line_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'{"op_code":7,"k":0}\n{"op_code":7,"a long line of a process that was ki')
    journal = Journal(tmp_path / "log")
    assert list(journal.read_logs(0)) == [{"op_code": 7, "k": 0}]
    journal.append_logs([{"op_code": 7, "k": 1}])
    assert list(journal.read_logs(1)) == [{"op_code": 7, "k": 1}]
    assert (tmp_path / "log").read_bytes() == b'{"op_code":7,"k":0}\n{"op_code":7,"k":1}\n'


def slow(call: Callable[..., bytes]) -> Callable[..., bytes]:
    """Return the function with a switch to another thread before it returns."""

    def yielding(*arguments: Any) -> bytes:
        found = call(*arguments)
        os.sched_yield()
        return found

    return yielding


def test_several_writers_share_one_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journals = [Journal(tmp_path / "log") for _ in range(4)]

    def write(which: int) -> None:
        for k in range(50):
            journals[which].append_logs([{"op_code": 7, "which": which, "k": k}])

    monkeypatch.setattr(os, "pread", slow(os.pread))
    threads = [threading.Thread(target=write, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = [[(log["which"], log["k"]) for log in journal.read_logs(0)] for journal in journals]
    assert sorted(read[0]) == [(which, k) for which in range(4) for k in range(50)]
    assert read[1:] == [read[0]] * 3
    assert [log["k"] for log in journals[0].read_logs(198)] == [k for _, k in read[0][198:]]


# Pruning.


def test_the_median_prunes_only_worse_trials(tmp_path: Path) -> None:
    launcher = Lockstep(identity)
    best = sweep(tmp_path, launcher, GRID, n_jobs=4, sampler="grid", pruner="median", startup_trials=4)
    # The median of 1, 2, 3, 4 is 2.5; then 0, 9, 1.5 and 8 follow.
    assert launcher.pruned(tmp_path) == [5, 7]
    assert [sorted(trial.intermediate_values) for trial in trials(tmp_path)[4:]] == [
        [10, 20, 30],
        [10],
        [10, 20, 30],
        [10],
    ]
    assert [found["number"] for found in best] == [4]
    assert launcher.watch is None


def test_nothing_is_pruned_during_warm_up(tmp_path: Path) -> None:
    launcher = Lockstep(identity)
    grid: dict[str, Any] = {"n_jobs": 4, "sampler": "grid", "pruner": "median"}
    sweep(tmp_path / "a", launcher, GRID, startup_trials=4, warmup_steps=15, **grid)
    assert launcher.pruned(tmp_path / "a") == [5, 7]
    assert [len(trial.intermediate_values) for trial in trials(tmp_path / "a")[4:]] == [3, 2, 3, 2]
    launcher = Lockstep(identity)
    sweep(tmp_path / "b", launcher, GRID, startup_trials=5, **grid)
    assert launcher.pruned(tmp_path / "b") == []


def test_the_smallest_are_pruned_if_the_metric_is_maximized(tmp_path: Path) -> None:
    launcher = Lockstep(lambda values: {"valid/rmse": values["x"], "valid/r2": values["x"]})
    launcher.name = "valid/r2"
    sweep(tmp_path, launcher, GRID, n_jobs=4, sampler="grid", pruner="median", startup_trials=4, metric="valid/r2")
    assert launcher.pruned(tmp_path) == [4, 6]


def test_rows_without_the_metric_prune_nothing(tmp_path: Path) -> None:
    launcher = Lockstep(identity)
    launcher.name = "valid/mae"
    sweep(tmp_path, launcher, GRID, n_jobs=4, sampler="grid", pruner="median", startup_trials=1)
    assert launcher.pruned(tmp_path) == []


def test_successive_halving_prunes_within_a_generation_and_keeps_the_best(tmp_path: Path) -> None:
    launcher = Lockstep(identity)
    best = sweep(tmp_path, launcher, GRID, n_jobs=8, sampler="grid", pruner="sha", warmup_steps=10)
    # A trial continues if it is in the best quarter of those that reached the rung before it.
    assert launcher.pruned(tmp_path) == [1, 2, 3, 5, 6, 7]
    assert [found["number"] for found in best] == [4]


def test_hyperband_keeps_the_best(tmp_path: Path) -> None:
    launcher = Lockstep(identity)
    best = sweep(tmp_path, launcher, GRID, n_jobs=4, sampler="grid", pruner="hyperband", warmup_steps=10)
    assert 4 not in launcher.pruned(tmp_path)
    assert set(launcher.pruned(tmp_path)) & {5, 7}
    assert [found["number"] for found in best] == [4]


def test_pruning_is_resumed(tmp_path: Path) -> None:
    class Killed(Lockstep):
        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            returns = super().launch(job_overrides, initial_job_idx)
            if initial_job_idx:
                raise KeyboardInterrupt
            return returns

    settings: dict[str, Any] = {"n_jobs": 4, "sampler": "grid", "pruner": "median", "startup_trials": 4}
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, Killed(identity), GRID, **settings)
    launcher = Lockstep(identity)
    sweep(tmp_path, launcher, GRID, **settings)
    assert launcher.batches == [[4, 5, 6, 7]]
    assert launcher.pruned(tmp_path) == [5, 7]


# Problems are reported before any trial starts.


def refusal(directory: Path, overrides: Sequence[str] = XY, launcher: Fake | None = None, **changes: Any) -> list[str]:
    launcher = launcher or Fake()
    with pytest.raises(ConfigError) as caught:
        sweep(directory, launcher, overrides, **changes)
    assert launcher.batches == []
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"n_trials": 0}, "`hydra.sweeper.n_trials` must be an integer of at least 1, got 0"),
        ({"sampler": "tpee"}, "`hydra.sweeper.sampler` must be one of tpe, gp, cmaes, qmc, nsgaii, random, grid or null, got 'tpee'; did you mean tpe?"),
        ({"pruner": "medium"}, "`hydra.sweeper.pruner` must be one of none, median, sha, hyperband, got 'medium'; did you mean median?"),
        ({"metric": "valid/rsme"}, "`hydra.sweeper.metric` must be one of train/loss, train/rmse, train/mae, train/r2, valid/loss, valid/rmse, valid/mae, valid/r2, test/loss, test/rmse, test/mae, test/r2, got valid/rsme; did you mean valid/rmse?"),
        ({"metric": ["valid/rmse", "valid/r2"], "direction": "minimize"}, "`hydra.sweeper.direction` must be one for each metric, got 1 for 2; give as many, or null"),
        ({"sampler": "grid"}, "`x` must have values that can be counted for sampler=grid, got an interval; write x=range(START,STOP,step=…) or choice(…)"),
        ({"sampler": "cmaes", "metric": ["valid/rmse", "valid/r2"]}, "`hydra.sweeper.sampler`=cmaes must have one metric and at least two keys with numbers, got several metrics; use tpe"),
        ({"pruner": "median"}, "`hydra.sweeper.pruner` must be none with a launcher that reports no metrics before the end, got median; leave it out, or use hydra/launcher=vmap"),
        ({"pruner": "median", "metric": ["valid/rmse", "valid/r2"]}, "`hydra.sweeper.pruner` must be none for several metrics, got median; leave it out"),
    ],
)  # fmt: skip
def test_a_bad_option_is_refused(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    assert refusal(tmp_path / "sweep", **changes) == [problem]
    assert not (tmp_path / "sweep").exists()


def test_cma_es_needs_two_numeric_keys(tmp_path: Path) -> None:
    (problem,) = refusal(tmp_path, ["x=interval(0,1)", "y=1,2"], sampler="cmaes")
    assert problem.endswith("must have one metric and at least two keys with numbers, got 1; use tpe")


def test_a_seed_is_not_searched(tmp_path: Path) -> None:
    assert refusal(tmp_path, [*XY, "seed=range(0,8)"]) == [
        "`seed` must be one value in a search, which would find the luckiest seed, got several; leave it out, or use "
        "hydra/sweeper=grid"
    ]


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    problems = refusal(tmp_path, ["x=interval(2,1)", "x=range(2,1)"], n_trials=0, n_jobs=0, study_name=None)
    assert [problem.split("`")[1] for problem in problems] == [
        "hydra.sweeper.n_trials", "hydra.sweeper.n_jobs", "hydra.sweeper.study_name", "x", "x",
    ]  # fmt: skip


def test_a_search_needs_a_key_to_vary(tmp_path: Path) -> None:
    assert refusal(tmp_path, ["x=1"]) == [
        "a search must vary a key, but every argument is one value; write KEY=interval(0,1)"
    ]


def test_the_launcher_checks_the_ends_of_the_space_first(tmp_path: Path) -> None:
    class Checking(Fake):
        def check(self, jobs: Sequence[Sequence[str]]) -> None:
            raise ConfigError([" ".join(overrides) for overrides in jobs])

    assert refusal(tmp_path, ["n=1", "x=interval(0,2.0)", "y=1,2,3"], Checking()) == [
        "n=1 x=0.0 y=1", "n=1 x=2.0 y=2", "n=1 x=0.0 y=3",
    ]  # fmt: skip


def test_a_metric_that_trials_lack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep(tmp_path, Fake(lambda values: {"train/rmse": 1.0, "test/rmse": 2.0}), metric="valid/rmse", n_trials=2)
    assert caught.value.problems == (
        "`hydra.sweeper.metric` must be a final metric of the trials, but trial 0 has no valid/rmse; use one of train/rmse, test/rmse",
    )


def test_a_missing_package_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("optuna", "scipy") else found(name))
    assert refusal(tmp_path, sampler="gp") == [
        "`hydra/sweeper`=optuna with sampler=gp needs optuna and scipy, which this Python lacks; "
        'install it with `pip install "runner[sweep]"`'
    ]


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"overrides": ["x=interval(0,1)"]}, "search space"), ({"metric": "valid/r2"}, "directions")],
)
def test_a_study_with_another_question_is_refused(changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    sweep(tmp_path, Fake(), n_trials=2)
    assert refusal(tmp_path, **changes) == [
        f"`hydra.sweeper.study_name` must name a study with the same {what}, got sweep in the sweep directory, "
        "which has another; give another name"
    ]


def test_a_journal_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("buy milk\n")
    for name, reason in (("notes.txt", "Expecting value"), ("gone/optuna.log", "No such file")):
        (problem,) = refusal(tmp_path / "s", storage=str(tmp_path / name))
        assert problem.startswith("`hydra.sweeper.storage` must be a journal of Optuna, or a new file, got ")
        assert reason in problem
    assert (tmp_path / "notes.txt").read_text() == "buy milk\n"
