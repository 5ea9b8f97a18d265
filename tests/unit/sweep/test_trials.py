"""From overrides to checked configurations: trials that differ in numbers are composed once, with the same result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.config import compose as composing
from runner.config.schema import config_hash
from runner.errors import ConfigError
from runner.sweep import trials
from runner.sweep.manifest import Manifest
from runner.sweep.trials import MAX_PROBLEMS, MAX_REFUSALS, Trial


class Sweep:
    """Plans trials, and counts how often a configuration was composed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.composed = 0
        self.fixed: list[str] = []
        self.config_dir: str | None = None
        monkeypatch.setattr(trials, "compose", self._compose)

    def _compose(self, *given: Any) -> Any:
        self.composed += 1
        return composing.compose(*given)

    def plan(self, jobs: Sequence[Sequence[str]], first: int = 0) -> list[Trial]:
        values = {"config_dir": self.config_dir, "fixed": self.fixed, "members": []}
        return trials.plan(jobs, first, Manifest(Path("sweep"), values))

    def refusal(self, jobs: Sequence[Sequence[str]]) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.plan(jobs)
        return list(caught.value.problems)


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Sweep:
    return Sweep(monkeypatch)


def test_a_trial_is_its_composed_configuration_in_its_own_directory(sweep: Sweep) -> None:
    jobs = [["+experiment=linreg", f"seed={seed}", f"optimizer.lr={lr}"] for seed in (1, 2) for lr in (1e-3, 1e-4)]
    found = sweep.plan(jobs, first=7)
    for number, (trial, overrides) in enumerate(zip(found, jobs, strict=True), start=7):
        single = composing.compose(overrides).config
        assert trial.config == replace(single, run_dir=f"sweep/{number}")
        assert (trial.number, trial.overrides) == (number, tuple(overrides))
        assert trial.manifest_entry()["asked_hash"] == config_hash(single)


# Keys that may differ between trials of one program, with values of every kind that they take.
NUMBERS = [
    (["+experiment=linreg"], "optimizer.lr", ["1e-3", "1", "0", "2.5", "1e38"]),
    (["+experiment=linreg"], "optimizer.weight_decay", ["0", "0.5", "1"]),
    (["+experiment=linreg"], "seed", ["0", "7", "4.0", "4294967295"]),
    (["+experiment=linreg"], "data.seed", ["3", "null", "0"]),
    (["+experiment=linreg"], "data.noise", ["2", "0", "0.5"]),
    (["+experiment=linreg"], "data.start", ["-3", "0.5"]),
    (["+experiment=linreg"], "data.slope", ["1", "-2.5"]),
    (["+experiment=linreg"], "train.clip_norm", ["null", "1", "0.5"]),
    (["+experiment=mlp"], "optimizer.betas", ["[0.9,0.99]", "[0,0.5]"]),
    (["+experiment=mlp"], "optimizer.eps", ["1e-8", "1"]),
    (["+experiment=mlp"], "train.early_stopping.patience", ["null", "3", "1.0"]),
    (["+experiment=mlp"], "train.early_stopping.min_delta", ["0", "1e-3"]),
    (["+experiment=mlp", "optimizer=momentum"], "optimizer.momentum", ["0", "0.9"]),
    (["+experiment=mlp", "schedule=step"], "schedule.every_steps", ["5", "6.0"]),
    (["+experiment=mlp", "schedule=step"], "schedule.factor", ["1", "0.5"]),
    (["+experiment=mlp", "schedule=warmup_cosine"], "schedule.warmup_steps", ["5", "50"]),
    (["+experiment=mlp", "schedule=cosine"], "schedule.final_factor", ["0", "1"]),
    (["+experiment=curve_fit"], "model.start.w", ["3", "0.5", "-1"]),
    (["+experiment=curve_fit", "model.expression=w*x+v"], "++model.start.v", ["3", "0.5"]),
    (
        ["+experiment=curve_fit", "model.expression=w*x+v"],
        "model.start",
        ["{w: 1, v: 2}", "{w: 3, v: 0.5}", "{w: -1, v: 1e3}"],
    ),
]


@pytest.mark.parametrize(("fixed", "key", "texts"), NUMBERS, ids=lambda value: value if isinstance(value, str) else "")
def test_numbers_are_set_as_in_a_composed_configuration(
    fixed: list[str], key: str, texts: list[str], sweep: Sweep
) -> None:
    jobs = [[*fixed, f"{key}={value}"] for value in texts]
    for number, (trial, overrides) in enumerate(zip(sweep.plan(jobs), jobs, strict=True)):
        assert trial.config == replace(composing.compose(overrides).config, run_dir=f"sweep/{number}")
    assert sweep.composed == 1


def test_other_values_are_composed_for_every_trial(sweep: Sweep) -> None:
    overrides = ["train.steps=5,6", "optimizer=sgd,momentum", "dtype=float32", "model.init=zeros,normal"]
    jobs = [
        ["+experiment=linreg", f"{override.partition('=')[0]}={value}", f"seed={seed}"]
        for override in overrides
        for value in override.partition("=")[2].split(",")
        for seed in range(2)
    ]
    for number, (trial, job) in enumerate(zip(sweep.plan(jobs), jobs, strict=True)):
        assert trial.config == replace(composing.compose(job).config, run_dir=f"sweep/{number}")
    assert sweep.composed == 7


def test_start_values_of_other_names_are_composed(sweep: Sweep) -> None:
    starts = ["{v: 1}", "{v: 2}", "{w: 3}", "{w: 3, v: 4}", "{}", "{v: 5}"]
    jobs = [["+experiment=curve_fit", "model.expression=w*x+v", f"model.start={start}"] for start in starts]
    for number, (trial, job) in enumerate(zip(sweep.plan(jobs), jobs, strict=True)):
        assert trial.config == replace(composing.compose(job).config, run_dir=f"sweep/{number}")
    assert sweep.composed == 4


def test_a_value_that_refers_to_another_follows_it_in_every_trial(sweep: Sweep) -> None:
    jobs = [["+experiment=linreg", "data.noise=${optimizer.lr}", f"optimizer.lr={lr}"] for lr in (1, 2, 3)]
    assert [getattr(trial.config.data, "noise", None) for trial in sweep.plan(jobs)] == [1, 2, 3]


def test_the_last_of_two_overrides_of_a_key_counts(sweep: Sweep) -> None:
    jobs = [["+experiment=linreg", "seed=8", f"seed={seed}"] for seed in (1, 2)]
    assert [trial.config.seed for trial in sweep.plan(jobs)] == [1, 2]


def test_the_values_of_a_member_are_those_of_its_varied_keys(sweep: Sweep) -> None:
    """This holds however a sweeper writes the fixed overrides."""
    sweep.fixed = ["+experiment=linreg", "record.plots=false", "++model.start.a=1"]
    jobs = [["+experiment=linreg", "record.plots=False", "optimizer=adam", "optimizer.betas=[0.5,0.9]", "seed=1"]]
    (trial,) = sweep.plan(jobs)
    assert trial.values == {"optimizer": "adam", "optimizer.betas": [0.5, 0.9], "seed": 1}
    assert trial.manifest_entry() == {
        "number": 0, "values": trial.values, "overrides": jobs[0], "asked_hash": config_hash(trial.config),
    }  # fmt: skip


# Problems are reported before any trial starts.


def test_each_problem_is_reported_once_with_its_first_trial(sweep: Sweep) -> None:
    jobs = [["+experiment=linreg", f"optimizer.lr={lr}", f"seed={seed}"] for lr in (1, -1) for seed in (0, -5)]
    assert sweep.refusal(jobs) == [
        "trial 1 and 1 more: `seed` must be an integer from 0 to 4294967295, got -5",
        "trial 2 and 1 more: `optimizer.lr` must be a finite number from 0 to 1e+38, got -1",
    ]


def test_a_problem_of_all_trials_is_reported_without_a_number(sweep: Sweep) -> None:
    jobs = [["+experiment=linreg", "data.noise=-1", f"seed={seed}"] for seed in range(3)]
    assert sweep.refusal(jobs) == ["`data.noise` must be a finite number of at least 0, got -1"]


def test_conflicting_values_are_found_in_their_trial(sweep: Sweep) -> None:
    fixed = ["+experiment=linreg", "schedule=warmup_cosine", "train.steps=50"]
    problems = sweep.refusal([[*fixed, f"schedule.warmup_steps={steps}"] for steps in (10, 60, 70)])
    assert [problem.split(" with ")[0] for problem in problems] == [
        "trial 1: `train.steps` must be at least 61",
        "trial 2: `train.steps` must be at least 71",
    ]
    assert sweep.composed == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.lr", "abc", "`optimizer.lr` must be a finite number from 0 to 1e+38, got 'abc'"),
        ("optimizer.lr", "null", "`optimizer.lr` must be a finite number from 0 to 1e+38, got null"),
        ("optimizer.lr", "[1]", "`optimizer.lr` must be a finite number from 0 to 1e+38, got [1]"),
        ("seed", "1.5", "`seed` must be an integer from 0 to 4294967295, got 1.5"),
        ("data.noise", "inf", "`data.noise` must be a finite number of at least 0, got inf"),
        ("data.noise", "true", "`data.noise` must be a finite number of at least 0, got true"),
    ],
)  # fmt: skip
def test_the_message_is_that_of_a_single_run(key: str, value: str, message: str, sweep: Sweep) -> None:
    bad = ["+experiment=linreg", f"{key}={value}"]
    assert sweep.refusal([["+experiment=linreg", f"{key}=1"], bad]) == [f"trial 1: {message}"]
    with pytest.raises(ConfigError) as caught:
        composing.compose(bad)
    assert caught.value.problems == (message,)


def test_the_same_problem_is_not_composed_thousands_of_times(sweep: Sweep) -> None:
    jobs = [["+experiment=linreg", f"train.steps={steps}", f"seed={seed}"] for steps in (5, 0) for seed in range(2000)]
    assert sweep.refusal(jobs) == [
        "trial 2000 and 1999 more: `train.steps` must be an integer of at least 1 or null, got 0"
    ]
    assert sweep.composed == 1 + MAX_REFUSALS


def test_a_bad_first_trial_does_not_hide_the_others(sweep: Sweep) -> None:
    jobs = [["+experiment=linreg", f"optimizer.lr={lr}"] for lr in (-1, -2, 1, -3, 2)]
    assert [problem.partition(":")[0] for problem in sweep.refusal(jobs)] == ["trial 0", "trial 1", "trial 3"]


def test_the_number_of_reported_problems_is_limited(sweep: Sweep) -> None:
    problems = sweep.refusal([["+experiment=linreg", f"optimizer.lr={lr}"] for lr in [1, *range(-30, 0)]])
    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[-1] == "and 10 more problems like these"


# Resuming.


def test_a_trial_that_has_started_is_resumed(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    begun, new = sweep.plan([["+experiment=linreg", f"seed={seed}"] for seed in (0, 1)])
    Path("sweep/0").mkdir(parents=True)
    Path("sweep/0/run.json").write_text("{}")
    assert begun.resumed_config() == replace(begun.config, resume="sweep/0")
    assert new.resumed_config() == new.config
