"""`optimizer=custom`: optimizers of torch and update rules from a package of the user's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from my_lab import optim

import runner
from runner import cli
from runner.config import schema as c
from runner.optim import traits

QUICK = [
    "device=cpu", "device.threads=1", "dtype=float64", "model=mlp", "model.widths=[5]", "data.rows=40", "train.batch_size=8",
    "record.plots=false", "record.residuals=false", "record.baselines=[]", "record.sinks=[jsonl]", "train.steps=12", "optimizer.lr=0.02",
]  # fmt: skip
OWN = [*QUICK, "optimizer=custom"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RUNNER_TRUST", "my_lab,torch")


def target(name: str) -> str:
    return f"optimizer.target=my_lab.optim:{name}"


def config(name: str) -> c.CustomOptimizer:
    return c.CustomOptimizer(name="custom", target=f"my_lab.optim:{name}", kwargs={}, lr=0.1)


def sha256(run: runner.training.run.Run) -> str:
    found: str = run.summary["parameters_sha256"]
    return found


def test_an_optimizer_of_torch_by_its_name_has_the_bits_of_ours() -> None:
    ours = [*QUICK, "schedule=cosine", "optimizer=momentum", "optimizer.momentum=0.8", "optimizer.weight_decay=0.1"]
    kwargs = "optimizer.kwargs={momentum: 0.8, weight_decay: 0.1}"
    theirs = [*OWN, "schedule=cosine", "optimizer.target=torch.optim.sgd:SGD", kwargs]
    assert sha256(runner.run(None, theirs)) == sha256(runner.run(None, ours))


def test_an_optimizer_and_its_rule_take_the_same_steps() -> None:
    kwargs = "optimizer.kwargs={betas: [0.8, 0.95], weight_decay: 0.1}"
    taken = runner.run(None, [*OWN, target("Lion"), kwargs, "schedule=cosine"])
    ruled = runner.run(None, [*OWN, target("LionRule"), kwargs, "schedule=cosine", "update=manual"])
    assert sha256(taken) == sha256(ruled)
    record = json.loads((taken.directory / "run.json").read_text())
    assert [*record["code"]] == ["my_lab.optim:Lion"]


@pytest.mark.parametrize(("name", "update"), [("Counting", "optimizer"), ("LionRule", "manual")])
def test_a_resumed_run_has_the_same_bits(name: str, update: str) -> None:
    own = [*OWN, target(name), f"update={update}"]
    whole = runner.run(None, own)
    part = runner.run(None, [*own, "train.steps=5"])
    assert sha256(runner.run(None, [f"resume={part.directory}", "train.steps=12"])) == sha256(whole)


def test_a_rule_is_vmapped_and_has_the_answers_of_single_runs(capfd: pytest.CaptureFixture[str]) -> None:
    own = [*OWN, target("LionRule"), "update=manual", "optimizer.kwargs.weight_decay=0.1"]
    directory, _ = runner.multirun(None, [*own, "optimizer.lr=0.1,0.01", "seeds=2"])
    assert "4 vmapped, as one program" in capfd.readouterr().out
    for trial, lr, seed in [(0, 0.1, 0), (3, 0.01, 1)]:
        lane = json.loads((directory / str(trial) / "summary.json").read_text())["parameters"]
        single = runner.run(None, [*own, f"optimizer.lr={lr}", f"seed={seed}"]).summary["parameters"]
        for name, values in single.items():
            # Lion's steps are signs: a rounding error of the gradients moves no number.
            assert torch.allclose(torch.tensor(lane[name]), torch.tensor(values), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("NormedRule", "its update rule has another answer for several runs at once"),
        ("Lion", "its torch.optim.Optimizer trains one run"),
    ],
)
def test_what_is_not_elementwise_or_no_rule_is_trained_one_by_one(
    name: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    update = "manual" if name.endswith("Rule") else "optimizer"
    runner.multirun(None, [*OWN, target(name), f"update={update}", "optimizer.lr=0.1,0.01", "train.steps=2"])
    assert reason in capfd.readouterr().out


@pytest.mark.parametrize("name", ["Lion", "Counting", "Normed", "Idle"])
def test_only_what_is_elementwise_may_be_sharded(name: str) -> None:
    found = traits.examine(config(name), "optimizer", [torch.ones(4, 2), torch.ones(2)])
    assert found.elementwise == (name != "Normed")


@pytest.mark.parametrize(
    ("name", "update", "message"),
    [
        ("Lion", "manual", "`update` must be optimizer with `optimizer.target`=my_lab.optim:Lion"),
        ("LionRule", "optimizer", "`update` must be manual with `optimizer.target`=my_lab.optim:LionRule"),
        ("Lyon", "optimizer", "has no Lyon; did you mean my_lab.optim:Lion?"),
        ("Neither", "manual", "got a class without init; correct the class"),
        ("Closure", "optimizer", "its step requires closure; use another one, or optimizer=lbfgs"),
        ("NoRate", "optimizer", "must have an argument lr, which `optimizer.lr` and `schedule` set"),
        ("Noisy", "optimizer", "must not draw random numbers"),
        ("Hidden", "optimizer", "must go on in the same way after its state was saved and loaded, but does not"),
        ("Unsaved", "optimizer", "a state of tensors and numbers, which are saved, got a ndarray in 'history'"),
        ("Failing", "optimizer", ", in step: ValueError: no step today"),
        ("OneShape", "manual", "of its shape (a count of steps is called step) in the slot 'exp_avg' of init"),
        ("NoState", "manual", "must return the new parameters and the new state from step, got a list"),
    ],
)
def test_a_class_that_cannot_be_used_is_refused_in_one_line(name: str, update: str, message: str) -> None:
    with pytest.raises(runner.ConfigError) as caught:
        traits.examine(config(name), update, [torch.ones(4, 2), torch.ones(2)])
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optimizer.kwargs={lr: 0.1}", "`optimizer.kwargs.lr` must not be given"),
        ("optimizer.kwargs={beta: 1}", "did you mean `optimizer.kwargs.betas`?"),
        ("optimizer.target=my_lab.optim.Lion", "write my_lab.optim:Lion"),
    ],
)
def test_arguments_that_do_not_fit_leave_no_run(argument: str, message: str) -> None:
    with pytest.raises(runner.ConfigError, match=re.escape(message)):
        runner.run(None, [*OWN, target("Lion"), argument])
    assert not Path("runs").exists()


def test_the_package_must_be_trusted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RUNNER_TRUST")
    assert cli.main([*OWN, target("Lion")]) == 2
    assert f"{optim.__file__} would be run; add --trust my_lab" in capsys.readouterr().err
