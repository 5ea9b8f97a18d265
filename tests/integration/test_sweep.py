"""Whole sweeps: their trials, which of them are vmapped, the files they leave, and what is printed."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import runner
from runner import cli
from runner.data.stacked import StackedBatches
from runner.training.objective import BatchObjective

QUICK = ["device=cpu", "device.threads=1", "train.steps=5"]
LINREG = ["+experiment=linreg", *QUICK]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def read(path: Path | str) -> Any:
    text = Path(path).read_text()
    return yaml.safe_load(text) if str(path).endswith(".yaml") else json.loads(text)


def values(directory: Path | str = "sweep") -> list[dict[str, Any]]:
    return [member["values"] for member in read(Path(directory) / "sweep.json")["members"]]


def states(directory: Path | str = "sweep") -> list[str]:
    return [member["state"] for member in read(Path(directory) / "sweep.json")["members"]]


def configs(*keys: str) -> list[tuple[Any, ...]]:
    """Return the values of some dotted keys, as each member was trained with."""

    def at(config: Any, key: str) -> Any:
        for name in key.split("."):
            config = config[name]
        return config

    numbers = range(len(values()))
    return [tuple(at(read(f"sweep/{n}/config.yaml"), key) for key in keys) for n in numbers]


def lanes() -> list[int]:
    """Return for every member the number of trials in its program, itself included."""
    return [read(f"sweep/{number}/run.json")["lanes"] for number in range(len(values()))]


# ------------------------------------------------------------------------------------------------------- the directory


def test_the_files_of_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [*LINREG, "optimizer.lr=1e-5,1e-4", "seeds=2"]
    directory, results = runner.multirun(None, overrides)
    assert directory.parent == Path("runs/linreg")
    assert re.fullmatch(r"sweep_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[0-9a-f]{6}", directory.name)
    assert {path.name for path in directory.iterdir()} == {"0", "1", "2", "3", "sweep.json", "results.csv", "plots"}
    assert {path.name for path in (directory / "plots").iterdir()} == {"optimizer.lr.png"}
    assert [(member.number, member.values) for member in results.members] == list(enumerate(values(directory)))
    out = capsys.readouterr().out
    assert out.startswith("trials 0-3: 4 vmapped, as one program\n         4 finished, 0 left\nlinreg: 4 trials\n")
    assert out.endswith(f"sweep    {directory}\nlook     tensorboard --logdir {directory}\n")


def test_the_manifest_has_the_request_and_the_end_of_every_trial() -> None:
    assert cli.main(["-m", *LINREG, "optimizer.lr=1e-5,1e30", "seeds=2", "run_dir=sweep"]) == 1
    manifest = read("sweep/sweep.json")
    request = {
        key: value for key, value in manifest.items() if key not in ("started", "ended", "members", "task", "fixed")
    }
    assert request == {
        "format": 1, "status": "failed", "reason": None, "resumed": 0, "name": "linreg", "config_dir": None, "hydra": [], "metric": None, "directions": None,
        "command": ["python", "-m", "runner", "-m", *LINREG, "optimizer.lr=1e-5,1e30", "seeds=2", "run_dir=sweep"],
        "words": [*LINREG, "optimizer.lr=1e-5,1e30", "seeds=2", "run_dir=sweep"], "swept": ["optimizer.lr", "seed"],
    }  # fmt: skip
    assert manifest["started"] < manifest["ended"]
    last = manifest["members"][3]
    assert (last["number"], last["state"], last["values"]) == (3, "failed", {"optimizer.lr": 1e30, "seed": 1})
    assert last["overrides"] == [
        *LINREG,
        "optimizer.lr=1e+30",
        "seed=1",
        "record.plots=false",
        "record.residuals=false",
    ]
    record = read("sweep/3/run.json")
    assert (last["reason"], last["config_hash"]) == (record["reason"], record["config_hash"])
    assert record["overrides"] == last["overrides"]


def test_the_same_command_again_is_another_sweep() -> None:
    first, second = (runner.multirun(None, [*LINREG, "seeds=2"])[0] for _ in range(2))
    assert first != second
    for number in "01":
        one, other = (read(directory / number / "summary.json") for directory in (first, second))
        assert one["parameters_sha256"] == other["parameters_sha256"]


def test_trials_draw_plots_if_requested() -> None:
    runner.multirun(None, [*LINREG, "seeds=2", "record.plots=true", "run_dir=sweep"])
    assert {path.name for path in Path("sweep/1/plots").iterdir()} == {"fit.png", "loss.png", "residuals.png"}


# ---------------------------------------------------------------------------------------------------------- the trials


def test_seeds_start_a_sweep_without_m() -> None:
    assert cli.main([*LINREG, "seed=4", "seeds=3", "run_dir=sweep"]) == 0
    assert values() == [{"seed": 4}, {"seed": 5}, {"seed": 6}]
    assert configs("seed", "seeds") == [(4, None), (5, None), (6, None)]


def test_the_last_key_varies_fastest_and_the_last_override_counts(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["optimizer.lr=9,10", "data.noise=1,2", "optimizer.lr=1e-5,1e-4"]
    assert cli.main(["-m", *LINREG, *overrides, "run_dir=sweep"]) == 0
    assert configs("data.noise", "optimizer.lr") == [(1, 1e-5), (1, 1e-4), (2, 1e-5), (2, 1e-4)]
    assert values()[0] == {"data.noise": 1, "optimizer.lr": 1e-5}
    assert "note: `optimizer.lr` is given twice; the last one counts: 1e-5,1e-4\n" in capsys.readouterr().out


def test_a_notice_is_printed_if_it_concerns_all_trials(capsys: pytest.CaptureFixture[str]) -> None:
    note = "note: kept from the experiment: `optimizer.lr`=0.0001 (adam: 0.001)\n"
    for override, printed in (("optimizer=adam", True), ("optimizer=adam,adamw", False)):
        assert cli.main(["-m", *LINREG, override, "seeds=2"]) == 0
        assert (note in capsys.readouterr().out) is printed


@pytest.mark.parametrize("launcher", ["vmap", "basic"])
@pytest.mark.parametrize(
    ("overrides", "keys", "expected"),
    [
        (["+experiment=linreg", "optimizer=adam,adamw", "optimizer.eps=1e-6"], ["optimizer.name", "optimizer.eps"], [("adam", 1e-6), ("adamw", 1e-6)]),
        (["+experiment=curve_fit", "model.start.w=0.5,1"], ["model.start"], [({"w": 0.5},), ({"w": 1.0},)]),
        (["+experiment=curve_fit", "model.expression=w*x+v", "model.start.v=2", "seeds=2"], ["model.start", "seed"], [({"w": 0.0, "v": 2.0}, 78), ({"w": 0.0, "v": 2.0}, 79)]),
        (["+experiment=linreg,curve_fit"], ["name", "data.name"], [("linreg", "line"), ("curve_fit", "curve")]),
        (["+experiment=linreg", "model=mlp", "model.widths=[4],[8,2]"], ["model.widths"], [([4],), ([8, 2],)]),
        (["+experiment=linreg", "optimizer=adam", "optimizer.betas=[0.9,0.99],[0.5,0.6]"], ["optimizer.betas"], [([0.9, 0.99],), ([0.5, 0.6],)]),
        (["+experiment=linreg", "optimizer.lr=${data.noise}", "data.noise=1e-5,2e-5"], ["optimizer.lr", "data.noise"], [(1e-5, 1e-5), (2e-5, 2e-5)]),
        (["+experiment=linreg", "train.epochs=2,3"], ["train.epochs", "train.steps"], [(2, None), (3, None)]),
        (["+experiment=curve_fit", "data.expression=sin(x)", "model.expression=w*cos(x)", "seeds=2"], ["data.expression", "model.expression"], [("sin(x)", "w*cos(x)")] * 2),
        (["+experiment=curve_fit", "model.expression='w*x','w*x + sin(x)'"], ["model.expression"], [("w*x",), ("w*x + sin(x)",)]),
        (["+experiment=linreg", "optimizer=glob(ad*)"], ["optimizer.name"], [("adam",), ("adamw",)]),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value[0], str) else "",
)  # fmt: skip
def test_trials_have_the_requested_values(
    overrides: Sequence[str], keys: Sequence[str], expected: Sequence[Any], launcher: str
) -> None:
    steps = [] if any(override.startswith("train.epochs") for override in overrides) else ["train.steps=3"]
    assert cli.main(["-m", f"hydra/launcher={launcher}", "device=cpu", *steps, *overrides, "run_dir=sweep"]) == 0
    assert configs(*keys) == list(expected)


def test_a_derived_value_follows_the_swept_value() -> None:
    """If it were composed once for all trials, all would have the value of the first."""
    Path("own/experiment").mkdir(parents=True)
    text = "# @package _global_\n# Mine.\ndefaults:\n  - override /data: line\nname: mine\ndata: {noise: '${optimizer.lr}', rows: 30}\n"
    Path("own/experiment/mine.yaml").write_text(text)
    overrides = ["--config-dir", "own", "+experiment=mine", *QUICK, "optimizer.lr=1e-6,2e-6", "run_dir=sweep"]
    assert cli.main(["-m", *overrides]) == 0
    assert configs("data.noise", "optimizer.lr") == [(1e-6, 1e-6), (2e-6, 2e-6)]


def test_a_resumed_shuffled_sweep_has_the_same_trials() -> None:
    overrides = [*LINREG, "optimizer.lr=shuffle(1e-6,2e-6,3e-6,4e-6,5e-6,1e30)", "run_dir=sweep"]
    assert cli.main(["-m", *overrides]) == 1
    order = values()
    assert sorted(v["optimizer.lr"] for v in order) == [1e-6, 2e-6, 3e-6, 4e-6, 5e-6, 1e30]
    assert order != sorted(order, key=lambda v: float(v["optimizer.lr"]))
    assert cli.main(["-m", "resume=sweep"]) == 1
    assert values() == order


@pytest.mark.parametrize("plugins", [[], ["hydra/launcher=basic"], ["hydra/sweeper=basic"]], ids=" ".join)
def test_only_the_trial_with_missing_data_fails(plugins: Sequence[str]) -> None:
    Path("there.csv").write_text("x,y\n" + "".join(f"{k},{2 * k}\n" for k in range(9)))
    overrides = [
        "data=csv",
        "data.target=y",
        "data.path=there.csv,missing.csv",
        "name=csv",
        "optimizer.lr=1e-4",
        "run_dir=sweep",
    ]
    assert cli.main(["-m", *plugins, *QUICK, *overrides]) == 1
    assert states() == ["finished", "failed"]
    assert not Path("sweep/1").exists()
    assert "'missing.csv' does not exist" in read("sweep/sweep.json")["members"][1]["reason"]
    Path("missing.csv").write_bytes(Path("there.csv").read_bytes())
    assert cli.main(["-m", "resume=sweep"]) == 0
    assert states() == ["finished", "finished"]


# ------------------------------------------------------------------------------------------------------ what is vmapped


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=mlp", "model.widths=[4],[8]", "seeds=2"], [2, 2, 2, 2]),
        (["dtype=float32,float64", "seeds=3"], [3] * 6),
        (["train.batch_size=null,8", "seeds=2"], [2] * 4),
        (["train.clip_norm=null,1,2"], [1, 2, 2]),
        (["data.seed=null,3,4"], [1, 2, 2]),
        (["train.steps=3,4", "seeds=2"], [2] * 4),
        (["optimizer=sgd,momentum", "optimizer.lr=1e-6,1e-5"], [2] * 4),
        (["data.rows=100,50", "seeds=2"], [2] * 4),
        (["deterministic=true,false", "seeds=2"], [2] * 4),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_keys_that_change_the_program_separate_groups(
    overrides: Sequence[str], expected: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # deterministic sets it
    runner.multirun(None, [*LINREG, *overrides, "run_dir=sweep"])
    assert lanes() == list(expected)


def test_each_trial_has_its_number_of_threads() -> None:
    runner.multirun(
        None, ["+experiment=linreg", "device=cpu", "train.steps=5", "device.threads=1,2", "seeds=2", "run_dir=sweep"]
    )
    assert [read(f"sweep/{n}/run.json")["threads"] for n in range(4)] == [1, 1, 2, 2]
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model=linear", "optimizer=lbfgs", "update=optimizer", "optimizer.lr=0.1,1"], "lbfgs searches along a line of its own"),
        (["model=mlp", "model.widths=[4]", "model.dropout=0.5", "seeds=2"], "dropout draws from one stream"),
        (["amp=bfloat16", "seeds=2"], "amp changes what vmap computes"),
        (["strategy.reduction=exact", "seeds=2"], "strategy.reduction=exact promises bits"),
        (["checkpoint.async_save=true", "seeds=2"], "checkpoint.async_save works for one run at a time"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_trials_that_cannot_be_vmapped_equal_single_runs_bit_for_bit(
    overrides: Sequence[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.multirun(None, [*LINREG, "data.standardize=true", *overrides, "run_dir=sweep"])
    assert f"trial 0 and others like it are trained one by one: {reason}\n" in capsys.readouterr().out
    assert lanes() == [1, 1]
    for number, member in enumerate(read("sweep/sweep.json")["members"]):
        solo = runner.run(None, member["overrides"])
        assert solo.summary["parameters_sha256"] == read(f"sweep/{number}/summary.json")["parameters_sha256"]


def test_a_model_that_vmap_refuses_is_trained_one_by_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = BatchObjective.gradient

    def refusing(self: BatchObjective) -> Any:
        if isinstance(self.batches, StackedBatches):
            raise RuntimeError("vmap: it is not possible to call .item()")
        return real(self)

    monkeypatch.setattr(BatchObjective, "gradient", refusing)
    runner.multirun(None, [*LINREG, "seeds=2", "run_dir=sweep"])
    assert (
        "are trained one by one: vmap refuses its model (vmap: it is not possible to call .item())"
        in capsys.readouterr().out
    )
    assert (states(), lanes()) == (["finished"] * 2, [1, 1])


def test_a_bug_ends_each_trial_with_its_traceback_in_run_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: BatchObjective, step: int) -> BatchObjective:
        raise KeyError("a mistake")

    with monkeypatch.context() as patch:
        patch.setattr(BatchObjective, "at", broken)
        runner.multirun(None, [*LINREG, "seeds=2", "run_dir=sweep"])
    assert (read("sweep/sweep.json")["status"], states()) == ("failed", ["failed"] * 2)
    for lane in range(2):
        assert read(f"sweep/{lane}/run.json")["reason"] == "KeyError: 'a mistake'"
        assert 'raise KeyError("a mistake")' in Path(f"sweep/{lane}/run.log").read_text()
    assert cli.main(["-m", "resume=sweep"]) == 0


# ---------------------------------------------------------------------------------------------------------- the audit


@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-12), ("float32", 1e-4)])
def test_the_audit_is_within_the_promised_difference(
    dtype: str, most: float, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        "model=mlp",
        "model.widths=[8]",
        "train.steps=200",
        "train.batch_size=16",
        "optimizer=adam",
        "optimizer.lr=1e-3,1e-2",
    ]
    overrides += ["data.standardize=true", "seeds=4", f"dtype={dtype}", "sweep.audit=3", "run_dir=sweep"]
    runner.multirun(None, ["+experiment=linreg", "device=cpu", "device.threads=1", *overrides])
    found = read("sweep/sweep.json")["audit"]
    assert len(set(found["members"])) == 3
    assert set(found["members"]) <= set(range(8))
    assert 0 < found["largest_difference"] <= most
    numbers = ", ".join(map(str, found["members"]))
    expected = (
        f"audit    trials {numbers} repeated one at a time: largest difference {found['largest_difference']:.2g}\n"
    )
    assert expected in capsys.readouterr().out
    assert not [path for path in Path().iterdir() if path.name != "sweep"]


# -------------------------------------------------------------------------------------------------------------- a search


def test_a_resumed_search_has_the_same_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    overrides = [
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=9",
        "hydra.sweeper.n_jobs=3",
        "hydra.sweeper.metric=test/rmse",
    ]
    overrides += [*LINREG, "optimizer.lr=tag(log, interval(1e-6, 1e-4))", "data.noise=choice(1,2)"]
    assert cli.main(["-m", *overrides, "run_dir=whole"]) == 0
    real, times = BatchObjective.at, []

    def at(self: BatchObjective, step: int) -> BatchObjective:
        times.append(step)
        if times.count(4) == 2:  # in the second generation
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(BatchObjective, "at", at)
        assert cli.main(["-m", *overrides, "run_dir=sweep"]) == 130
    assert states() == ["finished"] * 3 + ["interrupted"] * 3
    before = [Path(f"sweep/{n}/run.json").read_bytes() for n in range(3)]
    assert cli.main(["-m", "resume=sweep"]) == 0
    assert [Path(f"sweep/{n}/run.json").read_bytes() for n in range(3)] == before
    assert values("sweep") == values("whole")
    for number in range(9):
        one, other = (read(f"{name}/{number}/summary.json") for name in ("sweep", "whole"))
        assert one["parameters_sha256"] == other["parameters_sha256"]
    assert read("sweep/sweep.json")["metric"] == "test/rmse"


# ------------------------------------------------------------------------------------------------------- from Python


def test_errors_are_raised_and_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(runner.ConfigError, match=r"`optimizer.lrr` is not a key; did you mean `optimizer.lr`\?"):
        runner.multirun("linreg", ["optimizer.lrr=1,2"])
    assert capsys.readouterr() == ("", "")
    assert not list(Path().iterdir())


def test_multirun_starts_no_processes() -> None:
    with pytest.raises(
        runner.ConfigError, match=r"`launch.processes` and `launch.nodes` must be 1 in a call from Python"
    ):
        runner.multirun("linreg", [*QUICK, "launch.processes=2", "seeds=2"])
    assert not list(Path().iterdir())


def test_the_random_state_of_the_caller_is_kept() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    runner.multirun("linreg", [*QUICK, "seeds=2", "optimizer.lr=shuffle(1e-5,1e-4)", "model=mlp", "model.dropout=0.1"])
    assert torch.equal(torch.rand(4), expected)


def test_a_failed_trial_is_among_the_results() -> None:
    _, results = runner.multirun("linreg", [*QUICK, "optimizer.lr=1e-5,1e30"])
    assert [member.state for member in results.members] == ["finished", "failed"]
    assert str(results.members[1].reason).startswith("training diverged at step 2")
