"""Runs with bounds and fixed parameters: gradient methods, solvers, sweeps, processes, resume, and what is reported."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize

import faults
import runner
from runner import cli
from runner.config.compose import check, compose
from runner.config.schema import Config, config_hash, plain
from runner.config.versions import completed, without_newer
from runner.runs.sinks.jsonl import read_rows
from runner.training.run import Run

QUICK = ["device=cpu", "device.threads=1", "record.plots=false", "dtype=float64"]
DECAY = ["data=csv", "data.path=decay.csv", "data.target=y", "model=formula", "model.expression=a*exp(-b*x) + d"]
START = "model.start={a: 1, b: 0.3, d: 0.2}"
BOUNDS = "model.bounds={d: [0, null], b: [0.1, 2]}"
ADAM = [*DECAY, START, BOUNDS, "optimizer=adam", "optimizer.lr=0.05", "train.steps=1500", "record.every_steps=50"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = decay()
    rows = "".join(f"{a!r},{b!r}\n" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    Path("decay.csv").write_text(f"x,y\n{rows}")


def decay() -> tuple[Any, Any]:
    """Return x and y whose best offset is below 0."""
    x = np.linspace(0, 5, 40)
    return x, 3 * np.exp(-0.7 * x) - 0.05 + np.random.default_rng(0).normal(0, 0.1, 40)


def held() -> tuple[dict[str, float], dict[str, float]]:
    """Return parameters and standard errors by scipy, with the offset held at 0."""
    values, covariance = scipy.optimize.curve_fit(lambda x, a, b: a * np.exp(-b * x), *decay(), (1.0, 0.3))
    return dict(zip("ab", values, strict=True)), dict(zip("ab", np.sqrt(np.diag(covariance)), strict=True))


def run(*overrides: str) -> Run:
    return runner.run(None, [*QUICK, *overrides])


def test_lm_reports_the_errors_of_the_fit_with_the_active_bound_held(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(*DECAY, START, BOUNDS, "optimizer=lm")
    values, errors = held()
    summary = result.summary
    assert summary["parameters"]["d"] == 0
    assert (summary["converged"], summary["degrees_of_freedom"], summary["at_bounds"]) == (True, 38, {"d": "lower"})
    assert summary["standard_errors"].keys() == summary["confidence_intervals"].keys() == {"a", "b"}
    for name in ("a", "b"):  # curve_fit ends at a relative change of 1e-8
        assert summary["parameters"][name] == pytest.approx(values[name], rel=1e-6)
        assert summary["standard_errors"][name] == pytest.approx(errors[name], rel=1e-5)
    printed = capsys.readouterr().out
    assert "\nd = 0 (at its lower bound)\n" in printed
    assert "d is at its lower bound: it has no standard error, and those of the others hold for this value" in printed
    assert "optimum" not in summary


def test_a_fixed_parameter_is_a_number_of_the_formula(capsys: pytest.CaptureFixture[str]) -> None:
    fixed = run(*DECAY, START, "model.fixed.d=0", "optimizer=lm")
    written = run(*DECAY, "model.expression=a*exp(-b*x) + 0", "model.start={a: 1, b: 0.3}", "optimizer=lm")
    one, other = dict(fixed.summary), dict(written.summary)
    assert one["parameters"] == {**other["parameters"], "d": 0.0}
    assert one.pop("fixed") == ["d"]
    for summary in (one, other):
        for name in ("timing", "parameters"):
            del summary[name]
    assert one == other
    values, errors = held()
    assert one["degrees_of_freedom"] == 38
    assert one["standard_errors"] == pytest.approx(errors, rel=1e-5)  # curve_fit's derivatives are differences
    assert fixed.summary["parameters"] == pytest.approx({**values, "d": 0.0}, rel=1e-6)
    assert "\nd = 0 (fixed)\n" in capsys.readouterr().out
    assert "param/d" not in read_rows(fixed.directory / "metrics.jsonl")[-1]


@pytest.mark.parametrize("update", ["manual", "optimizer"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "momentum", "sgd"])
def test_gradient_methods_stay_within_bounds_and_end_at_the_minimum(optimizer: str, update: str) -> None:
    rate = (
        ["optimizer.lr=0.05", "train.steps=1500"] if "adam" in optimizer else ["optimizer.lr=0.2", "train.steps=4000"]
    )
    result = run(*ADAM, f"optimizer={optimizer}", "optimizer.weight_decay=0", f"update={update}", *rate)
    values, errors = held()
    rows = read_rows(result.directory / "metrics.jsonl")
    assert all(row["param/d"] >= 0 and 0.1 <= row["param/b"] <= 2 for row in rows)
    summary = result.summary
    assert (summary["converged"], summary["at_bounds"], summary["parameters"]["d"]) == (True, {"d": "lower"}, 0)
    for name in ("a", "b"):
        assert summary["parameters"][name] == pytest.approx(values[name], rel=1e-5)
        assert summary["standard_errors"][name] == pytest.approx(errors[name], rel=1e-5)


def test_a_parameter_at_a_wrong_bound_has_not_converged() -> None:
    """At its lower bound of 0.5 the gradient points inside, so that the bound is no reason for the end."""
    result = run(*DECAY, "model.start={a: 3, b: 0.5, d: 0}", "model.bounds={b: [0.5, 2], d: [0, null]}", "optimizer.lr=0", "train.steps=1")  # fmt: skip
    assert result.summary["converged"] is False
    assert "use optimizer=lm" in result.summary["not_converged_because"]


@pytest.mark.parametrize("optimizer", ["adam", "lm"])
def test_vmapped_runs_have_the_bounds_of_single_ones(optimizer: str) -> None:
    overrides = [*DECAY, BOUNDS, f"optimizer={optimizer}", "train.steps=1500", *(["optimizer.lr=0.05"] if optimizer == "adam" else [])]  # fmt: skip
    directory, _ = runner.multirun(None, [*QUICK, *overrides, "model.start.a=1,2", "model.start.d=0.2,1"])
    for number, (a, d) in enumerate([(1, 0.2), (1, 1), (2, 0.2), (2, 1)]):
        member = directory / str(number)
        assert json.loads((member / "run.json").read_text())["lanes"] == 4
        summary = json.loads((member / "summary.json").read_text())
        alone = run(*overrides, f"model.start.a={a}", f"model.start.d={d}").summary
        assert summary["parameters"] == pytest.approx(alone["parameters"], rel=1e-9)
        assert summary["at_bounds"] == alone["at_bounds"] == {"d": "lower"}
        assert summary["standard_errors"] == pytest.approx(alone["standard_errors"], rel=1e-9)


def test_bounds_and_fixed_values_are_swept() -> None:
    directory, _ = runner.multirun(None, [*QUICK, *DECAY, "model.start={a: 1, b: 1}", "optimizer=lm", "model.bounds.b=[0.9,2],[0.8,2]", "model.fixed.d=0,-0.1"])  # fmt: skip
    summaries = [json.loads((directory / str(i) / "summary.json").read_text()) for i in range(4)]
    assert [s["parameters"]["d"] for s in summaries] == [0, -0.1, 0, -0.1]
    assert [s["parameters"]["b"] for s in summaries] == [0.9, 0.9, 0.8, 0.8]
    assert all(s["at_bounds"] == {"b": "lower"} for s in summaries)


@pytest.mark.parametrize("launcher", ["vmap", "pool", "basic"])
def test_mappings_are_given_whole_to_every_launcher(launcher: str) -> None:
    directory, _ = runner.multirun(None, [*QUICK, *DECAY, START, "optimizer=lm", "model.bounds={d: [0, null]},{}", f"hydra/launcher={launcher}"])  # fmt: skip
    held, free = (json.loads((directory / str(i) / "summary.json").read_text()) for i in range(2))
    assert (held["at_bounds"], "at_bounds" in free) == ({"d": "lower"}, False)
    for trial, bounds in ((held, ["model.bounds={d: [0, null]}"]), (free, [])):
        assert trial["parameters"] == run(*DECAY, START, "optimizer=lm", *bounds).summary["parameters"]


@pytest.mark.parametrize("overrides", [["optimizer=adam", "optimizer.lr=0.05"], ["optimizer=lm"]])
def test_a_stopped_run_continues_to_the_bit(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*DECAY, START, BOUNDS, *overrides, "train.steps=30", "record.every_steps=1"]
    whole = run(*arguments)
    with monkeypatch.context() as patch:
        faults.at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(runner.Interrupted):
            run(*arguments, "run_dir=half")
    assert len(read_rows(Path("half/metrics.jsonl"))) == 3 < whole.summary["steps"]
    again = runner.run(None, ["resume=half"])
    assert again.summary["parameters_sha256"] == whole.summary["parameters_sha256"]


def test_keys_without_values_leave_the_hash_as_it_was() -> None:
    config = compose([*DECAY, "model.bounds={}"]).config
    values = plain(config)
    for name in ("bounds", "fixed"):
        assert values["model"].pop(name) == {}
    assert plain(check(completed(Config, values))) == plain(config)
    assert config_hash(config) != config_hash(compose([*DECAY, "model.bounds.a=[0,null]"]).config)
    assert without_newer(Config, plain(config)) == without_newer(Config, values)  # what is hashed


REFUSED = {
    "model.bounds.aa=[0,1]": "`model.bounds.aa` must name a parameter of `model.expression`='a*exp(-b*x) + d', which has a, b, x, d; did you mean `a`?",
    "model.fixed.q=1": "`model.fixed.q` must name a parameter of `model.expression`='a*exp(-b*x) + d', which has a, b, x, d; remove it or correct its name",
    "model.bounds.a=[1,0]": "`model.bounds.a` must have a lower bound below the upper one, got [1, 0]; exchange them",
    "model.bounds.a=[1,1]": "`model.bounds.a` must be two different numbers, got [1, 1]; use model.fixed.a=1 instead",
    "model.bounds.a=[0,.nan]": "`model.bounds` must be a mapping from names to a list of 2 items, each a finite number or null, got {'a': [0, '.nan']}",
    "model.bounds.a=3": "`model.bounds` must be a mapping from names to a list of 2 items, each a finite number or null, got {'a': 3}",
    "model.bounds.x=[0,1]": "`model.bounds.x` must name a parameter, but 'x' is a column of the data; remove it",
    "model.fixed.x=0": "`model.fixed.x` must name a parameter, but 'x' is a column of the data; remove it",
    "model.fixed.a=inf": "`model.fixed` must be a mapping from names to finite numbers, got {'a': inf}",
    "model.fixed={a: 1, b: 1, d: 1}": "`model.fixed` must leave a parameter to fit, but has all of a, b, d; remove one",
    "model.expression=a*x + 1/c|model.fixed.c=0": "`model.fixed`: the formula 'a*x + 1/c' is refused at column 8: it divides by the constant 0",
    "model.fixed.a=1|model.bounds.a=[0,1]": "`model.bounds.a` must not be given with `model.fixed.a`=1, which is not trained; remove one of them",
    "model.start.a=-1|model.bounds.a=[0,null]": "`model.start.a` must lie within `model.bounds.a`=[0, null], got -1; change one of them",
    "model.bounds.a=[0,1]|optimizer=lstsq": "`model.bounds` must be empty with `optimizer`=lstsq, which solves without bounds; use optimizer=lm",
    "model.bounds.a=[0,1]|optimizer=lbfgs|update=optimizer": "`model.bounds` must be empty with `optimizer`=lbfgs, whose line search would leave them; use optimizer=adam",
    "dtype=float32|model.start.a=-1e39": "`model.start.a` must be a number that `dtype`=float32 represents, got -1e+39, which is too large; use dtype=float64",
    "dtype=float32|model.fixed.a=1e-50": "`model.fixed.a` must be a number that `dtype`=float32 represents, got 1e-50, which is too small; use dtype=float64",
    "dtype=float32|model.bounds.a=[null,1e39]": "`model.bounds.a[1]` must be a number that `dtype`=float32 represents, got 1e+39, which is too large; use dtype=float64",
    "model=linear|model.bounds.a=[0,1]": "`model.bounds` is not a key of linear, which has init_from, bias, init; remove it",
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*QUICK, *(DECAY[:3] if "linear" in case else DECAY), *case.split("|")]
    last = {re.split("[=]", argument, maxsplit=1)[0]: argument for argument in given}  # the last one counts
    assert cli.main(list(last.values())) == 2
    assert f"error: {REFUSED[case]}\n" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_several_problems_are_reported_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main([*QUICK, *DECAY, "model.bounds={a: [2, 1], b: [1, 1], q: [0, 1]}", "model.fixed={z: 0}"])
    assert (code, capsys.readouterr().err.count("error: `model.")) == (2, 4)
