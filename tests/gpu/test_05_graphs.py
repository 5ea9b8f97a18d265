"""A training step that is captured as a CUDA graph gives the bits of the eager step, and fails and resumes as it does."""

from __future__ import annotations

from pathlib import Path

import pytest

import runner
from gpu.devices import (
    CAPTURED,
    EAGER,
    EITHER,
    EVERYTHING,
    FULL_BATCH,
    NETWORK,
    first_difference,
    needs_device,
    needs_gpu,
    read_json,
    resume,
    rows,
    state,
    steps_line,
    train,
    used_graph,
)
from runner.commands.parity.rounding import relative_difference

pytestmark = needs_device

FIXED = "deterministic=true"
LINE = ("+experiment=linreg", "train.steps=30", "record.every_steps=1", "record.hash_every_steps=1", FIXED)
UPDATES = [(name, update) for name in ("sgd", "momentum", "adam", "adamw") for update in ("manual", "optimizer")]
ADAM = "optimizer=adam"
CASES = {
    **{f"line, {name}, {update}": (*LINE, f"optimizer={name}", f"update={update}") for name, update in UPDATES},
    **{f"network, {name}, {update}": (*NETWORK, f"optimizer={name}", f"update={update}") for name, update in UPDATES},
    "line, float64": (*LINE, "dtype=float64"),
    "float64": (*NETWORK, "dtype=float64", "update=manual", ADAM),
    "bfloat16": (*NETWORK, "dtype=bfloat16", "update=manual", ADAM),
    "amp bfloat16": (*NETWORK, "amp=bfloat16", ADAM),
    "all rows": (*FULL_BATCH, "optimizer.lr=0.01"),
    "dropout": (*NETWORK, "model.dropout=0.3"),
    "dropout, accumulation": (*NETWORK, "model.dropout=0.3", "train.accumulate=3", "update=manual"),
    "clipping": (*NETWORK, "train.clip_norm=0.05"),
    "accumulation": (*NETWORK, "train.accumulate=4", "update=manual"),
    "cosine": (*NETWORK, "schedule=cosine"),
    "cosine, manual adam": (*NETWORK, "schedule=cosine", "update=manual", ADAM),
    "warm-up": (*NETWORK, "schedule=warmup_cosine", "schedule.warmup_steps=5", ADAM),
    "steps": (*NETWORK, "schedule=step", "schedule.every_steps=4", "schedule.factor=0.5", "optimizer=momentum"),
    "everything": (*EVERYTHING, ADAM),
    "everything, manual": (*EVERYTHING, "optimizer=adamw", "update=manual"),
    "checked gradients": (*NETWORK, "train.check_gradients=true"),
    "huber": (*NETWORK, "loss=huber"),
    "formula": ("+experiment=curve_fit", "record.hash_every_steps=1", "optimizer=adam"),
    "long": (*EVERYTHING, ADAM, "train.steps=200", "record.every_steps=50", "record.hash_every_steps=10", "checkpoint.every_steps=100"),
}  # fmt: skip

BOTH = {"eager": EAGER, "captured": CAPTURED}
"""Folder of a run -> how its steps are taken."""


@pytest.mark.parametrize("case", CASES)
def test_a_captured_step_has_the_bits_of_the_eager_step(case: str) -> None:
    eager, captured = (train(name, *CASES[case], FIXED, graph) for name, graph in BOTH.items())
    assert first_difference(eager, captured) is None
    assert_captured(captured)


def assert_captured(run: Path) -> None:
    """Assert that the steps of a run were captured, unless it is a rehearsal."""
    if read_json(run / "run.json")["device"] != "cpu":
        assert used_graph(run)


@pytest.mark.parametrize("case", ["line, sgd, manual", "network, adam, optimizer", "dropout", "everything, manual"])
def test_auto_captures(case: str) -> None:
    eager, captured = (train(name, *CASES[case], FIXED, graph) for name, graph in (("eager", EAGER), ("auto", EITHER)))
    assert first_difference(eager, captured) is None
    assert_captured(captured)


def test_a_captured_step_agrees_without_deterministic_operations() -> None:
    """Sums may then be in another order, so float64 is compared with a tolerance of 1e-12 after 20 steps."""
    overrides = (*EVERYTHING, "dtype=float64", "update=manual", "optimizer=momentum")
    eager, captured = (train(name, *overrides, graph) for name, graph in BOTH.items())
    assert relative_difference(state(captured)["model"], state(eager)["model"]) < 1e-12


@pytest.mark.parametrize("exact", ["strategy.chunks=1", "strategy.chunks=4"])
def test_exact_reduction_has_the_same_bits_captured_or_not(exact: str) -> None:
    overrides = (*EVERYTHING, FIXED, "strategy.reduction=exact", exact)
    eager, either = (train(name, *overrides, graph) for name, graph in (("eager", EAGER), ("auto", EITHER)))
    assert first_difference(eager, either) is None


DIVERGING = {
    "line": (*LINE, "optimizer.lr=1", "train.steps=300", "record.every_steps=50"),
    "line, rows at every step": (*LINE, "optimizer.lr=1", "train.steps=300"),
    "network": (*NETWORK, "train.steps=300", "update=manual", "optimizer.lr=1e6", "record.every_steps=50"),
    "clipped": (*NETWORK, "train.steps=300", "train.clip_norm=1e30", "optimizer.lr=1e12", "record.every_steps=50"),
}


@pytest.mark.parametrize("case", DIVERGING)
def test_a_captured_run_diverges_as_the_eager_run(case: str) -> None:
    messages, runs = [], []
    for name, graph in BOTH.items():
        with pytest.raises(runner.Diverged) as raised:
            train(name, *DIVERGING[case], FIXED, graph)
        messages.append(str(raised.value).replace(name, "run"))
        runs.append(Path(name))
    eager, captured = runs
    assert messages[0] == messages[1]
    assert messages[0].startswith("training diverged at step ")
    assert repr(rows(eager)) == repr(rows(captured))
    saved = [sorted(path.name for path in (run / "checkpoints").glob("step_*")) for run in runs]
    assert saved[0] == saved[1]
    if saved[0]:
        one, other = (state(run)["model"] for run in runs)
        assert all(one[name].equal(other[name]) for name in one)
        assert all(value.isfinite().all() for value in one.values())


@pytest.mark.parametrize("graphs", [(EAGER, CAPTURED), (CAPTURED, EAGER), (CAPTURED, CAPTURED)])
def test_runs_are_resumed_with_and_without_graphs(graphs: tuple[str, str]) -> None:
    """How steps are taken is no part of the experiment, so it may change in the middle of a run."""
    overrides = (*NETWORK, FIXED, "model.dropout=0.2", "train.accumulate=2", "optimizer=adam", "update=manual")
    whole, part = train("whole", *overrides, EAGER), train("part", *overrides, "train.steps=7", graphs[0])
    resumed = resume(part, "train.steps=20", *((graphs[1],) if graphs[0] != graphs[1] else ()))
    assert first_difference(whole, resumed) is None


@needs_gpu
@pytest.mark.parametrize(
    "overrides",
    [(*FULL_BATCH, "optimizer=lbfgs"), (*FULL_BATCH, "optimizer=lm"), (*NETWORK, "amp=float16")],
    ids=["lbfgs", "lm", "amp float16"],
)
def test_what_cannot_be_captured_is_refused_or_eager(overrides: tuple[str, ...]) -> None:
    with pytest.raises(runner.ConfigError) as raised:
        train("refused", *overrides, CAPTURED)
    assert "train.cuda_graph" in str(raised.value)
    assert not Path("refused").exists()
    assert not used_graph(train("auto", *overrides, EITHER))


def test_a_graph_is_refused_on_the_cpu() -> None:
    with pytest.raises(runner.ConfigError) as raised:
        train("refused", *NETWORK, "device=cpu", "train.cuda_graph=true")
    assert "train.cuda_graph" in str(raised.value)
    assert not Path("refused").exists()


@needs_gpu
def test_run_log_says_how_steps_are_taken() -> None:
    assert "CUDA graph" in steps_line(train("captured", *NETWORK, EITHER))
    assert "eager: " in steps_line(train("eager", *FULL_BATCH, EITHER, "optimizer=lm"))


def test_evaluation_between_captured_steps_changes_nothing() -> None:
    """Evaluations, rows, hashes and checkpoints use the memory of the GPU between two replays."""
    often = train("often", *EVERYTHING, FIXED, CAPTURED, "train.eval_every_steps=1", "checkpoint.every_steps=1")
    seldom = train("seldom", *EVERYTHING, FIXED, CAPTURED, "train.eval_every_steps=null", "checkpoint.every_steps=null")
    assert (
        read_json(often / "summary.json")["parameters_sha256"]
        == read_json(seldom / "summary.json")["parameters_sha256"]
    )
    assert (often / "hashes.jsonl").read_bytes() == (seldom / "hashes.jsonl").read_bytes()
