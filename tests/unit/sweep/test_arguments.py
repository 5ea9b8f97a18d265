"""The arguments after `-m`: their purpose, and the overrides of one trial."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.config.compose import compose
from runner.errors import ConfigError
from runner.sweep.arguments import check_resume_overrides, classify, disable_products, expand_seeds


def test_arguments_are_classified_by_purpose() -> None:
    found = classify(
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
    ("argument", "task"),
    [
        ("experiment=linreg", "+experiment=linreg"),
        ("+experiment=linreg,mlp", "+experiment=linreg,mlp"),
        ("optimizer=adam", "optimizer=adam"),
        ("+optimizer=adam", "optimizer=adam"),
        ("model.start.w=1", "++model.start.w=1"),
        ("+model.start.w=1,2", "++model.start.w=1,2"),
        ("model.start={w: 1}", "++model.start={w: 1}"),
        ("model.expression=sin(x)", "++model.expression='sin(x)'"),
    ],
)
def test_keys_that_hydra_lacks_get_a_plus(argument: str, task: str) -> None:
    """Hydra's configuration has no `experiment`, and of a mapping it has only the keys that an experiment sets."""
    assert classify([argument], None).task == [task]


@pytest.mark.parametrize(
    ("argument", "first"),
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
def test_the_sample_trial_has_the_first_value_of_every_key(argument: str, first: str) -> None:
    assert classify([argument], None).sample == [first]


def test_a_directory_is_text_whatever_it_looks_like() -> None:
    assert [classify([f"run_dir={text}"], None).run_dir for text in ("007", "1e3", "true", "'a, b'", "null")] == [
        "007", "1e3", "true", "a, b", None,
    ]  # fmt: skip


def test_the_last_override_of_a_key_counts_and_is_noted() -> None:
    found = classify(["optimizer.lr=1,2", "+experiment=linreg", "experiment=mlp", "optimizer.lr=3"], None)
    assert (found.task, found.swept) == (["+experiment=mlp", "optimizer.lr=3"], [])
    assert found.notices == [
        "`experiment` is given twice; the last one counts: mlp",
        "`optimizer.lr` is given twice; the last one counts: 3",
    ]


def test_all_unreadable_arguments_are_reported_at_once() -> None:
    arguments = [
        "optimizer.lr=",
        "--fast",
        "seeds=1,2",
        "hydra.mode=RUN",
        "seed=range(3,1)",
        "optimizer=glob(x*)",
        "nonsense",
    ]
    with pytest.raises(ConfigError) as caught:
        classify(arguments, None)
    assert [problem.split("`")[1] for problem in caught.value.problems] == [
        "--fast", "seeds", "hydra.mode", "seed", "optimizer", "nonsense",
    ]  # fmt: skip


def test_groups_of_the_user_are_known(tmp_path: Path) -> None:
    (tmp_path / "size").mkdir()
    (tmp_path / "size" / "small.yaml").write_text("# @package _global_\n# Small.\ntrain: {steps: 3}\n")
    assert classify(["size=small"], str(tmp_path)).task == ["+size=small"]


# Seeds and plots.


@pytest.mark.parametrize(
    ("arguments", "seed"), [(["seeds=3"], 0), (["seed=7", "seeds=3"], 7), (["seeds=3", "seed=7"], 7)]
)
def test_seeds_are_a_range_from_the_seed_of_the_experiment(arguments: list[str], seed: int) -> None:
    found = classify(["+experiment=linreg", *arguments], None)
    expand_seeds(found, compose(found.sample, None).config.seed)
    assert found.task == ["+experiment=linreg", f"seed=range({seed},{seed + 3})"]
    assert (found.swept, found.fixed) == (["seed"], ["+experiment=linreg"])
    assert found.sample == ["+experiment=linreg", f"seed={seed}"]


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "true", "abc", "[1]"])
def test_a_bad_number_of_seeds_is_refused(count: str) -> None:
    with pytest.raises(ConfigError, match=r"^`seeds` must be an integer of at least 1, got .*; write seeds=8$"):
        expand_seeds(classify([f"seeds={count}"], None), 0)


def test_seeds_with_a_swept_seed_are_refused() -> None:
    with pytest.raises(ConfigError, match="`seeds` is short for a range of `seed`, which is swept as well"):
        expand_seeds(classify(["seeds=2", "seed=1,2"], None), 0)


@pytest.mark.parametrize(
    ("arguments", "added"), [([], True), (["record.{}=true"], False), (["record.{}=true,false"], False)]
)
@pytest.mark.parametrize(("product", "other"), [("plots", "residuals"), ("residuals", "plots")])
def test_trials_have_no_plots_and_no_residuals_unless_requested(
    product: str, other: str, arguments: list[str], added: bool
) -> None:
    found = classify([argument.format(product) for argument in arguments], None)
    disable_products(found)
    for overrides in (found.task, found.fixed, found.sample):
        assert (f"record.{product}=false" in overrides) is added
        assert f"record.{other}=false" in overrides


# Overrides of a resumed sweep.


def test_only_the_way_trials_run_may_change_on_resume() -> None:
    check_resume_overrides(["resume=there", "sweep.audit=3", "hydra.launcher.per_device=2"])
    with pytest.raises(ConfigError) as caught:
        check_resume_overrides(["resume=there", "seed=1,2", "hydra/launcher=pool", "+experiment=mlp", "train.steps=9"])
    assert [problem.split("`")[1] for problem in caught.value.problems] == [
        "seed", "hydra/launcher", "experiment", "train.steps",
    ]  # fmt: skip
