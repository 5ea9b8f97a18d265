"""From words to checked configurations: composed once for those that differ in numbers, and no other than composed each."""

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
from runner.sweep.trials import MOST_PROBLEMS, MOST_TRIES, Trial


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


def test_a_trial_is_what_composing_its_words_gives_in_a_place_of_its_own(sweep: Sweep) -> None:
    jobs = [["+experiment=linreg", f"seed={seed}", f"optimizer.lr={lr}"] for seed in (1, 2) for lr in (1e-3, 1e-4)]
    found = sweep.plan(jobs, first=7)
    for number, (trial, words) in enumerate(zip(found, jobs, strict=True), start=7):
        alone = composing.compose(words).config
        assert trial.config == replace(alone, run_dir=f"sweep/{number}")
        assert (trial.number, trial.words) == (number, tuple(words))
        assert trial.member()["asked_hash"] == config_hash(alone)


# For keys in which trials of one program may differ: values of every kind that such a key takes.
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
]


@pytest.mark.parametrize(("fixed", "key", "given"), NUMBERS, ids=lambda given: given if isinstance(given, str) else "")
def test_numbers_are_set_as_composing_sets_them(fixed: list[str], key: str, given: list[str], sweep: Sweep) -> None:
    jobs = [[*fixed, f"{key}={value}"] for value in given]
    for number, (trial, words) in enumerate(zip(sweep.plan(jobs), jobs, strict=True)):
        assert trial.config == replace(composing.compose(words).config, run_dir=f"sweep/{number}")
    assert sweep.composed == 1


def test_what_is_no_number_of_a_program_is_composed(sweep: Sweep) -> None:
    words = ["train.steps=5,6", "optimizer=sgd,momentum", "dtype=float32", "model.init=zeros,normal"]
    jobs = [
        ["+experiment=linreg", f"{word.partition('=')[0]}={value}", f"seed={seed}"]
        for word in words
        for value in word.partition("=")[2].split(",")
        for seed in range(2)
    ]
    for number, (trial, own) in enumerate(zip(sweep.plan(jobs), jobs, strict=True)):
        assert trial.config == replace(composing.compose(own).config, run_dir=f"sweep/{number}")
    assert sweep.composed == 7


def test_a_value_that_follows_another_follows_it_in_every_trial(sweep: Sweep) -> None:
    jobs = [["+experiment=linreg", "data.noise=${optimizer.lr}", f"optimizer.lr={lr}"] for lr in (1, 2, 3)]
    assert [getattr(trial.config.data, "noise", None) for trial in sweep.plan(jobs)] == [1, 2, 3]


def test_the_last_of_two_words_for_a_key_counts(sweep: Sweep) -> None:
    jobs = [["+experiment=linreg", "seed=8", f"seed={seed}"] for seed in (1, 2)]
    assert [trial.config.seed for trial in sweep.plan(jobs)] == [1, 2]


def test_a_member_s_values_are_those_of_keys_that_others_give_otherwise(sweep: Sweep) -> None:
    """However a sweeper of another make writes the words that all have."""
    sweep.fixed = ["+experiment=linreg", "record.plots=false", "++model.start.a=1"]
    jobs = [["+experiment=linreg", "record.plots=False", "optimizer=adam", "optimizer.betas=[0.5,0.9]", "seed=1"]]
    (trial,) = sweep.plan(jobs)
    assert trial.values == {"optimizer": "adam", "optimizer.betas": [0.5, 0.9], "seed": 1}
    assert trial.member() == {
        "number": 0, "values": trial.values, "overrides": jobs[0], "asked_hash": config_hash(trial.config),
    }  # fmt: skip


# What is wrong with any of them is told before anything is started.


def test_each_problem_is_told_once_with_its_first_trial(sweep: Sweep) -> None:
    jobs = [["+experiment=linreg", f"optimizer.lr={lr}", f"seed={seed}"] for lr in (1, -1) for seed in (0, -5)]
    assert sweep.refusal(jobs) == [
        "trial 1 and 1 more: `seed` must be an integer from 0 to 4294967295, got -5",
        "trial 2 and 1 more: `optimizer.lr` must be a finite number from 0 to 1e+38, got -1",
    ]


def test_what_is_wrong_with_all_is_told_without_a_number(sweep: Sweep) -> None:
    jobs = [["+experiment=linreg", "data.noise=-1", f"seed={seed}"] for seed in range(3)]
    assert sweep.refusal(jobs) == ["`data.noise` must be a finite number of at least 0, got -1"]


def test_values_that_do_not_fit_together_are_found_in_their_trial(sweep: Sweep) -> None:
    fixed = ["+experiment=linreg", "schedule=warmup_cosine", "train.steps=50"]
    (problem,) = sweep.refusal([[*fixed, f"schedule.warmup_steps={steps}"] for steps in (10, 60, 70)])
    assert problem.startswith("trial 1 and 1 more: `schedule.warmup_steps` must be below `train.steps`")
    assert sweep.composed == 1


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("optimizer.lr", "abc", "`optimizer.lr` must be a finite number from 0 to 1e+38, got 'abc'"),
        ("optimizer.lr", "null", "`optimizer.lr` must be a finite number from 0 to 1e+38, got null"),
        ("optimizer.lr", "[1]", "`optimizer.lr` must be a finite number from 0 to 1e+38, got [1]"),
        ("seed", "1.5", "`seed` must be an integer from 0 to 4294967295, got 1.5"),
        ("data.noise", "inf", "`data.noise` must be a finite number of at least 0, got inf"),
        ("data.noise", "true", "`data.noise` must be a finite number of at least 0, got true"),
    ],
)  # fmt: skip
def test_the_sentence_is_that_of_a_run_alone(key: str, value: str, sentence: str, sweep: Sweep) -> None:
    bad = ["+experiment=linreg", f"{key}={value}"]
    assert sweep.refusal([["+experiment=linreg", f"{key}=1"], bad]) == [f"trial 1: {sentence}"]
    with pytest.raises(ConfigError) as caught:
        composing.compose(bad)
    assert caught.value.problems == (sentence,)


def test_thousands_of_the_same_are_not_composed_each(sweep: Sweep) -> None:
    jobs = [["+experiment=linreg", f"train.steps={steps}", f"seed={seed}"] for steps in (5, 0) for seed in range(2000)]
    assert sweep.refusal(jobs) == [
        "trial 2000 and 1999 more: `train.steps` must be an integer of at least 1 or null, got 0"
    ]
    assert sweep.composed == 1 + MOST_TRIES


def test_a_first_trial_that_is_wrong_does_not_hide_the_others(sweep: Sweep) -> None:
    jobs = [["+experiment=linreg", f"optimizer.lr={lr}"] for lr in (-1, -2, 1, -3, 2)]
    assert [problem.partition(":")[0] for problem in sweep.refusal(jobs)] == ["trial 0", "trial 1", "trial 3"]


def test_no_more_problems_are_told_than_one_reads(sweep: Sweep) -> None:
    problems = sweep.refusal([["+experiment=linreg", f"optimizer.lr={lr}"] for lr in [1, *range(-30, 0)]])
    assert len(problems) == MOST_PROBLEMS + 1
    assert problems[-1] == "and 10 more problems like these"


# Going on.


def test_a_trial_goes_on_where_it_has_begun(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    begun, new = sweep.plan([["+experiment=linreg", f"seed={seed}"] for seed in (0, 1)])
    Path("sweep/0").mkdir(parents=True)
    Path("sweep/0/run.json").write_text("{}")
    assert begun.going_on() == replace(begun.config, resume="sweep/0")
    assert new.going_on() == new.config
