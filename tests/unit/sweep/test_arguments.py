"""The words after `-m`: what they are for, and the words of one trial."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.config.compose import compose
from runner.errors import ConfigError
from runner.sweep.arguments import refuse_beside_resume, sort, with_seeds, without_pictures


def test_words_are_sorted_by_what_they_are_for() -> None:
    found = sort(
        ["hydra/launcher=pool", "+experiment=linreg", "optimizer.lr=1,2", "hydra.launcher.per_device=2", "seed=range(3,9)",
         "data.noise=0.5", "run_dir=there", "seeds=4", "sweep.audit=1"], None
    )  # fmt: skip
    assert found.hydra == ["hydra/launcher=pool", "hydra.launcher.per_device=2"]
    assert found.task == [
        "+experiment=linreg",
        "optimizer.lr=1,2",
        "seed=range(3,9)",
        "data.noise=0.5",
        "sweep.audit=1",
    ]
    assert found.fixed == ["+experiment=linreg", "data.noise=0.5", "sweep.audit=1"]
    assert found.swept == ["optimizer.lr", "seed"]
    assert found.sample == ["+experiment=linreg", "optimizer.lr=1", "seed=3", "data.noise=0.5", "sweep.audit=1"]
    assert (found.run_dir, found.resume, found.seeds) == ("there", None, 4)


@pytest.mark.parametrize(
    ("word", "task"),
    [
        ("experiment=linreg", "+experiment=linreg"),
        ("+experiment=linreg,mlp", "+experiment=linreg,mlp"),
        ("optimizer=adam", "optimizer=adam"),
        ("+optimizer=adam", "optimizer=adam"),
        ("model.start.w=1", "++model.start.w=1"),
        ("+model.start.w=1,2", "++model.start.w=1,2"),
        ("model.start={w: 1}", "model.start={w: 1}"),
        ("model.expression=sin(x)", "model.expression='sin(x)'"),
    ],
)
def test_hydra_is_told_what_is_new_to_it(word: str, task: str) -> None:
    """Its own configuration has no `experiment`, and of a mapping it knows only what an experiment has given."""
    assert sort([word], None).task == [task]


@pytest.mark.parametrize(
    ("word", "first"),
    [
        ("seed=5,6", "seed=5"),
        ("seed=range(5,9,2)", "seed=5"),
        ("data.noise=range(0.5,9)", "data.noise=0.5"),
        ("data.noise=interval(0.5,9)", "data.noise=0.5"),
        ("optimizer.lr=tag(log, interval(1e-5,1))", "optimizer.lr=1e-05"),
        ("optimizer=choice(adam,sgd)", "optimizer=adam"),
        ("optimizer=glob(*g*)", "optimizer=lbfgs"),
        ("model.widths=[4],[8]", "model.widths=[4]"),
        ("data.path='a, b.csv',c", "data.path='a, b.csv'"),
        ("train.clip_norm=null,1", "train.clip_norm=null"),
    ],
)
def test_one_trial_has_the_first_value_of_every_key(word: str, first: str) -> None:
    assert sort([word], None).sample == [first]


def test_a_directory_is_a_text_whatever_it_looks_like() -> None:
    assert [sort([f"run_dir={text}"], None).run_dir for text in ("007", "1e3", "true", "'a, b'", "null")] == [
        "007", "1e3", "true", "a, b", None,
    ]  # fmt: skip


def test_the_last_word_for_a_key_counts_and_the_user_hears_of_it() -> None:
    found = sort(["optimizer.lr=1,2", "+experiment=linreg", "experiment=mlp", "optimizer.lr=3"], None)
    assert (found.task, found.swept) == (["+experiment=mlp", "optimizer.lr=3"], [])
    assert found.notices == [
        "`experiment` is given twice; the last one counts: mlp",
        "`optimizer.lr` is given twice; the last one counts: 3",
    ]


def test_all_that_cannot_be_read_is_told_at_once() -> None:
    words = [
        "optimizer.lr=",
        "--fast",
        "seeds=1,2",
        "hydra.mode=RUN",
        "seed=range(3,1)",
        "optimizer=glob(x*)",
        "nonsense",
    ]
    with pytest.raises(ConfigError) as caught:
        sort(words, None)
    assert [problem.split("`")[1] for problem in caught.value.problems] == [
        "--fast", "seeds", "hydra.mode", "seed", "optimizer", "nonsense",
    ]  # fmt: skip


def test_the_user_s_own_groups_are_known(tmp_path: Path) -> None:
    (tmp_path / "size").mkdir()
    (tmp_path / "size" / "small.yaml").write_text("# @package _global_\n# Small.\ntrain: {steps: 3}\n")
    assert sort(["size=small"], str(tmp_path)).task == ["+size=small"]


# Seeds and pictures.


@pytest.mark.parametrize(("words", "seed"), [(["seeds=3"], 0), (["seed=7", "seeds=3"], 7), (["seeds=3", "seed=7"], 7)])
def test_seeds_are_a_range_from_that_of_the_experiment(words: list[str], seed: int) -> None:
    found = sort(["+experiment=linreg", *words], None)
    with_seeds(found, compose(found.sample, None).config.seed)
    assert found.task == ["+experiment=linreg", f"seed=range({seed},{seed + 3})"]
    assert (found.swept, found.fixed) == (["seed"], ["+experiment=linreg"])
    assert found.sample == ["+experiment=linreg", f"seed={seed}"]


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "true", "abc", "[1]"])
def test_seeds_that_are_no_number_of_them(count: str) -> None:
    with pytest.raises(ConfigError, match=r"^`seeds` must be an integer of at least 1, but is .*; write seeds=8$"):
        with_seeds(sort([f"seeds={count}"], None), 0)


def test_seeds_beside_swept_seeds() -> None:
    with pytest.raises(ConfigError, match="`seeds` is short for a range of `seed`, which is swept as well"):
        with_seeds(sort(["seeds=2", "seed=1,2"], None), 0)


@pytest.mark.parametrize(
    ("words", "added"), [([], True), (["record.plots=true"], False), (["record.plots=true,false"], False)]
)
def test_members_draw_nothing_unless_they_are_told_to(words: list[str], added: bool) -> None:
    found = sort(words, None)
    without_pictures(found)
    for own in (found.task, found.fixed, found.sample):
        assert ("record.plots=false" in own) is added


# What may be said when a sweep goes on.


def test_only_how_trials_are_run_may_change() -> None:
    refuse_beside_resume(["resume=there", "sweep.audit=3", "hydra.launcher.per_device=2"])
    with pytest.raises(ConfigError) as caught:
        refuse_beside_resume(["resume=there", "seed=1,2", "hydra/launcher=pool", "+experiment=mlp", "train.steps=9"])
    assert [problem.split("`")[1] for problem in caught.value.problems] == [
        "seed", "hydra/launcher", "experiment", "train.steps",
    ]  # fmt: skip
