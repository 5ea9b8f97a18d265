"""Combinations of values that are valid by themselves and refused together."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest

from runner.config import constraints
from runner.config.compose import compose
from runner.errors import ConfigError

REFUSED = {
    "dtype=float64 device=mps": "`dtype` must not be float64 with `device`=mps",
    "dtype=float16 device=cpu": "`dtype` must not be float16 with `device`=cpu",
    "dtype=float16 device=cuda optimizer=adam": "`optimizer.eps` must be at least 6e-8 with `dtype`=float16",
    "dtype=float16 device=cuda optimizer=adamw": "`optimizer.eps` must be at least 6e-8 with `dtype`=float16",
    "dtype=float64 amp=bfloat16": "`amp` must be off unless `dtype` is float32",
    "dtype=bfloat16 amp=float16": "`amp` must be off unless `dtype` is float32",
    "optimizer=lbfgs update=manual": "`update` must be optimizer with `optimizer`=lbfgs",
    "optimizer=lbfgs amp=float16": "`amp` must not be float16 with `optimizer`=lbfgs",
    "optimizer=lbfgs train.clip_norm=1": "`train.clip_norm` must be null with `optimizer`=lbfgs",
    "model=formula model.bounds.a=[0,null] optimizer=lstsq": "`model.bounds` must be empty with `optimizer`=lstsq",
    "model=formula model.bounds.a=[0,null] optimizer=lbfgs update=optimizer": "`model.bounds` must be empty with `optimizer`=lbfgs",
    "optimizer=lstsq dtype=float64 model.init_from=runs/a": "`model.init_from` must be null with `optimizer`=lstsq",
    "model=formula data.standardize=true": "`data.standardize` must be false with `model`=formula",
    "model=formula data.numbers=robust": "`data.numbers` must be none with `model`=formula",
    "model=formula data.target_scale=standardize": "`data.target_scale` must be none with `model`=formula",
    "data.standardize=true data.numbers=quantile": "`data.numbers` must be standardize or null",
    "data.standardize=true data.target_scale=none": "`data.target_scale` must be standardize or null",
    "train.steps=null": "`train.steps` and `train.epochs` must be one number and one null",
    "train.early_stopping.patience=3": "`train.eval_every_steps` must be an integer with `train.early_stopping.patience`",
    "checkpoint.metric=r2 train.select=best": "`checkpoint.metric` must be null where the best state is reported, which `train.early_stopping.metric` chooses, got r2",
    "train.batch_size=4 train.accumulate=5": "`train.accumulate` must be at most `train.batch_size`=4, got 5",
    "data.split.test=1.0": "`data.split.test` must be an integer number of rows or a fraction below 1",
    "data.split.valid=1.5": "`data.split.valid` must be an integer number of rows or a fraction below 1",
    "data.start=5 data.stop=5": "`data.start` must be below `data.stop`",
    "data=curve data.start=5 data.stop=4": "`data.start` must be below `data.stop`",
    "schedule=warmup_cosine schedule.warmup_steps=30 train.steps=30": "`train.steps` must be at least 31 with `schedule`=warmup_cosine, got 30",
    "strategy.chunks=12": "`strategy.chunks` must be a power of two",
    "strategy=fsdp strategy.reduction=exact": "`strategy.reduction` must be fast unless `strategy` is single or ddp",
    "strategy=dp strategy.reduction=exact": "`strategy.reduction` must be fast unless `strategy` is single or ddp",
    "strategy.reduction=exact train.compile=true": "`train.compile` must be false with `strategy.reduction`=exact",
    "strategy=ddp strategy.tensor_parallel=2": "`strategy.tensor_parallel` must be 1 with `strategy`=ddp: torch's",
    "strategy=tensor strategy.tensor_parallel=2": "`strategy.tensor_parallel` must be 1 unless `strategy` is fsdp",
    "strategy=fsdp model=formula": "`strategy` must be single, dp or ddp with `model`=formula",
    "strategy=tensor optimizer=lbfgs": "`strategy` must be single, dp or ddp with `optimizer`=lbfgs",
    "strategy=fsdp amp=float16": "`amp` must not be float16 with `strategy`=fsdp, tensor or pipeline",
    "strategy=tensor train.compile=true": "`train.compile` must be false with `strategy`=tensor or pipeline",
    "strategy=pipeline train.accumulate=2": "`train.accumulate` must be 1 and `amp` off with `strategy`=pipeline",
    "strategy=pipeline amp=bfloat16": "`train.accumulate` must be 1 and `amp` off with `strategy`=pipeline",
    "optimizer=lstsq loss=mae": "`loss` must be mse with `optimizer`=lstsq",
    "optimizer=lm train.batch_size=8": "`train.batch_size` must be null with `optimizer`=lm",
    "optimizer=lm train.accumulate=2": "`train.accumulate` must be 1 with `optimizer`=lm",
    "optimizer=lstsq train.clip_norm=1": "`train.clip_norm` must be null with `optimizer`=lstsq",
    "optimizer=lm schedule=cosine": "`schedule` must be constant with `optimizer`=lm",
    "optimizer=lstsq dtype=bfloat16": "`dtype` must be float64 or float32, and `amp` off, with `optimizer`=lstsq",
    "optimizer=lm amp=bfloat16": "`dtype` must be float64 or float32, and `amp` off, with `optimizer`=lm",
    "optimizer=lm model=mlp model.dropout=0.1": "`model`=mlp must not use dropout with `optimizer`=lm",
    "optimizer=lm model=mlp model.embedding_size=2": "`model.embedding_size` must be null with `optimizer`=lm",
    "strategy=tensor model=mlp model.embedding_size=2": "`model.embedding_size` must be null when processes split each layer",
    "strategy=fsdp strategy.tensor_parallel=2 model=mlp model.embedding_size=2": "`model.embedding_size` must be null when",
    "optimizer=lm strategy=fsdp": "`strategy` must be single, dp or ddp with `optimizer`=lm",
    "launch.rdzv_endpoint=127.0.0.1:0": "`launch.rdzv_endpoint` must have a port from 1 to 65535, got 127.0.0.1:0; give a free port of that host",
    "launch.nodes=2 launch.rdzv_endpoint=a:65536": "`launch.rdzv_endpoint` must have a port from 1 to 65535, got a:65536",
    "data.start=-1e308 data.stop=1e308": "`data.stop` must be at most 1.8e308 above `data.start`=-1e+308, the largest float64, got 1e+308",
    "launch.nodes=2": "`launch.rdzv_endpoint` must be host:port with `launch.nodes`=2",
    "data=curve data.expression=2": "`data.expression` must have at least one name, the feature",
    "data=curve data.expression=open(x)": "`data.expression`: the formula 'open(x)' is refused at column 1: `open` is not one of the functions",
    "model=formula model.expression=a*x.real": "`model.expression`: the formula 'a*x.real' is refused at column 4",
    "model=formula model.start.q=1": "`model.start.q` must name a parameter of `model.expression`='a*x + b', which has a, x, b",
}


@cache
def problems(arguments: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        compose(arguments.split())
    return refused.value.problems


@pytest.mark.parametrize(("arguments", "beginning"), REFUSED.items())
def test_a_forbidden_combination_is_refused_with_a_remedy(arguments: str, beginning: str) -> None:
    (problem,) = problems(arguments)
    assert problem.startswith(beginning)
    assert any(verb in problem for verb in ("use ", "set ", "write ", "give ", "remove it", "consists of"))


def test_sinks_that_do_not_fit_are_refused() -> None:
    expected = {
        "[jsonl,tensorbord]": "`record.sinks` must be a list of jsonl, tensorboard, got tensorbord; did you mean tensorboard?",
        "[jsonl,x]": "`record.sinks` must be a list of jsonl, tensorboard, got x; remove it",
        "[jsonl,jsonl]": "`record.sinks` must not repeat an entry, got [jsonl, jsonl]; remove one",
        "[tensorboard]": "`record.sinks` must include jsonl, which resume and comparisons read, got [tensorboard]; add it",
    }
    assert {sinks: problems(f"record.sinks={sinks}") for sinks in expected} == {
        sinks: (problem,) for sinks, problem in expected.items()
    }


@pytest.mark.parametrize(
    "arguments",
    [
        "dtype=float32 device=mps",
        "dtype=float16 device=cuda",
        "dtype=float16 device=cuda optimizer=adam optimizer.eps=1e-4",
        "amp=float16 optimizer=adam",
        "optimizer=lbfgs amp=bfloat16",
        "model=linear data.standardize=true",
        "train.steps=null train.epochs=1",
        "train.early_stopping.patience=3 train.eval_every_steps=1",
        "train.select=best checkpoint.metric=loss",
        "train.early_stopping.patience=3 train.eval_every_steps=1 train.select=last checkpoint.metric=r2",
        "train.batch_size=5 train.accumulate=5",
        "train.accumulate=5",
        "data.split.test=1 data.split.valid=0.99",
        "schedule=warmup_cosine schedule.warmup_steps=29 train.steps=30",
        "schedule=warmup_cosine schedule.warmup_steps=30 train.epochs=1",
        "model=formula model.start.b=1",
        "strategy=ddp strategy.reduction=exact strategy.chunks=1",
        "strategy=fsdp strategy.tensor_parallel=2 amp=bfloat16 train.compile=true",
        "strategy=ddp model=formula optimizer=lbfgs",
        "strategy=fsdp model=mlp model.embedding_size=2 optimizer=adam",
        "optimizer=lstsq dtype=float32 update=manual strategy=ddp",
        "optimizer=lm model=mlp data.standardize=true strategy.reduction=exact",
        "launch.nodes=2 launch.rdzv_endpoint=node0:29500",
    ],
)
def test_similar_combinations_are_allowed(arguments: str) -> None:
    assert compose(arguments.split()).notices == ()


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        compose(["optimizer=lbfgs", "update=manual", "amp=float16", "dtype=float64", "train.clip_norm=1"])
    assert [problem.split("`")[1] for problem in refused.value.problems] == ["amp", "update", "amp", "train.clip_norm"]


def test_every_rule_has_a_case() -> None:
    messages = [message for arguments in REFUSED for message in problems(arguments)]
    for rule in constraints.FORBIDDEN:
        pattern = ".*".join(map(re.escape, re.split(r"\{.*?\}", rule.sentence)))
        assert any(re.fullmatch(pattern, message) for message in messages), rule.sentence


def test_a_message_names_the_chosen_part() -> None:
    for name in ("lstsq", "lm"):
        (problem,) = problems(f"optimizer={name} loss=mae")
        assert problem.startswith(f"`loss` must be mse with `optimizer`={name}, which minimizes")


def test_a_resolved_device_is_checked_like_a_requested_one() -> None:
    config = compose(["device=auto", "dtype=float16"]).config
    assert constraints.problems(config) == []
    (problem,) = constraints.problems(replace(config, device=replace(config.device, name="cpu")))
    assert problem.startswith("`dtype` must not be float16 with `device`=cpu")


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ("dtype=bfloat16 optimizer=lm", "dtype=float64"),
        ("amp=bfloat16 optimizer=lm", "dtype=float64 and amp=off"),
        ("dtype=bfloat16 optimizer=lm device=mps", "dtype=float64 and device=cpu"),
        ("amp=bfloat16 optimizer=lm device=mps", "dtype=float64 and amp=off and device=cpu"),
    ],
)
def test_advice_on_a_dtype_is_allowed(arguments: str, advice: str) -> None:
    (problem,) = problems(f"{arguments} model=polynomial")
    assert problem.endswith(f"; use {advice}")
    kept = [argument for argument in arguments.split() if not argument.startswith(("amp", "dtype"))]
    assert compose([*kept, *advice.split(" and "), "model=polynomial"]).config


@pytest.mark.parametrize(
    ("arguments", "key", "value", "advice"),
    [
        ("", "dtype", "float64", "dtype=float64"),
        ("amp=bfloat16", "dtype", "float64", "dtype=float64 and amp=off"),
        ("device=mps", "dtype", "float64", "dtype=float64 and device=cpu"),
        ("", "data.standardize", True, "data.standardize=true"),
        ("model=formula model.expression=a*x", "data.standardize", True, None),
        ("", "dtype", "float31", None),
    ],
)
def test_advice_on_a_value_names_what_must_change_for_it(arguments: str, key: str, value: object, advice: str) -> None:
    config = compose(arguments.split()).config
    assert constraints.advised(config, key, value) == advice
    if advice is not None:
        compose([*arguments.split(), *advice.split(" and ")])


def test_a_learning_rate_of_zero_gets_a_notice() -> None:
    assert compose(["optimizer.lr=0"]).notices == ("`optimizer.lr` is 0, so the parameters will not change",)


WORLD_SIZES = [
    ("data.rows=3", 4, "the number of processes must not be above the number of rows, 3, got 4; start fewer processes"),
    ("strategy.reduction=exact", 3, "`strategy.chunks` must be divisible by the number of processes, 3"),
    (
        "strategy.reduction=exact strategy.chunks=2",
        4,
        "`strategy.chunks` must be divisible by the number of processes, 4",
    ),
    ("strategy=single", 2, "`strategy` must be ddp, fsdp, tensor or pipeline on 2 processes, got single"),
    ("strategy=dp", 2, "`strategy` must be ddp, fsdp, tensor or pipeline on 2 processes, got dp"),
    ("strategy=fsdp", 1, "`strategy`=fsdp must have at least 2 processes"),
    ("strategy=pipeline", 1, "`strategy`=pipeline must have at least 2 processes"),
    (
        "strategy=fsdp strategy.tensor_parallel=2",
        3,
        "`strategy.tensor_parallel` must divide the number of processes, 3",
    ),
]


@pytest.mark.parametrize(("arguments", "size", "beginning"), WORLD_SIZES)
def test_a_world_size_that_cannot_compute_a_run_is_refused(arguments: str, size: int, beginning: str) -> None:
    (problem,) = constraints.world_size_problems(compose(arguments.split()).config, size)
    assert problem.startswith(beginning)


@pytest.mark.parametrize("arguments", ["strategy=auto", "strategy=ddp", "strategy.reduction=exact", "strategy=single"])
def test_one_process_can_compute_a_run_that_is_not_sharded(arguments: str) -> None:
    assert constraints.world_size_problems(compose(arguments.split()).config, 1) == []


def alternatives(message: str) -> list[list[str]]:
    """Return the overrides that a message advises: "use a=1 and b=2, or c=3" is [[a=1, b=2], [c=3]]."""
    advice = message.rpartition("; ")[2]
    found = [re.findall(r"[a-z_.]+=[^\s,…]+", part) for part in re.split(r",? or ", advice)]
    return [overrides for overrides in found if overrides]


ADVISED = [
    (arguments, overrides)
    for arguments in REFUSED
    for problem in problems(arguments)
    for overrides in alternatives(problem)
]


@pytest.mark.parametrize(("arguments", "advice"), ADVISED, ids=[f"{a} → {' '.join(o)}" for a, o in ADVISED])
def test_what_a_message_advises_is_accepted(arguments: str, advice: list[str]) -> None:
    replaced = {override.partition("=")[0] for override in advice}
    kept = [argument for argument in arguments.split() if argument.partition("=")[0] not in replaced]
    compose([*kept, *advice])
