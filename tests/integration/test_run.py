"""Complete runs: the files they leave, how they end when something goes wrong, and what they print."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import faults
import runner
from runner import cli
from runner.compute.strategies.base import MicroBatch
from runner.data.kinds import Numbers
from runner.data.tables import read_diabetes
from runner.runs import checkpoint
from runner.runs.hashes import parameters_sha256
from runner.runs.sinks.jsonl import read_rows
from runner.training import build

QUICK = ["device=cpu", "device.threads=1", "record.plots=false"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def record(run: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run / "run.json").read_text())
    return value


# --------------------------------------------------------------------------------------------- the files of a run


def test_the_directory_is_complete() -> None:
    run = runner.run("linreg", ["device=cpu", "device.threads=1"])
    assert run.directory.parent == Path("runs/linreg")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[0-9a-f]{6}", run.directory.name)
    names = {path.name for path in run.directory.iterdir()}
    events = next(name for name in names if name.startswith("events.out.tfevents."))
    assert names == {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "summary.json",
        "preprocessing.json",
        "residuals.csv",
        "checkpoints",
        "plots",
        "run.log",
        events,
    }
    assert {path.name for path in (run.directory / "plots").iterdir()} == {"fit.png", "loss.png", "residuals.png"}
    assert (
        os.readlink(run.directory / "checkpoints/last")
        == os.readlink(run.directory / "checkpoints/best")
        == "step_2000"
    )


def test_config_yaml_has_the_values_that_ran() -> None:
    run = runner.run("linreg", [*QUICK, "train.steps=2", "device=auto"])
    config = yaml.safe_load((run.directory / "config.yaml").read_text())
    assert (config["device"]["name"], config["strategy"]["name"]) == (record(run.directory)["device"], "single")
    assert config["train"]["steps"] == 2
    assert config["optimizer"] == {"name": "sgd", "lr": 1e-4, "weight_decay": 0.0}


def test_run_json_has_every_field() -> None:
    run = runner.run("linreg", [*QUICK, "train.steps=2", "seed=7"])
    kept = record(run.directory)
    assert kept["status"] == "finished"
    assert kept["overrides"] == ["+experiment=linreg", *QUICK, "train.steps=2", "seed=7"]
    assert (kept["seed"], kept["dtype"], kept["strategy"], kept["world_size"], kept["threads"]) == (
        7,
        "float32",
        "single",
        1,
        1,
    )
    assert (kept["torch"], kept["device"], kept["resumed"]) == (torch.__version__, "cpu", 0)
    assert re.fullmatch(r"[0-9a-f]{64}", kept["config_hash"])
    assert kept["started"] < kept["ended"]
    assert kept.keys() >= {"command", "git_commit", "git_dirty", "python", "hydra", "device_name", "masks"}


def test_rows_are_written_at_intervals_and_at_the_end() -> None:
    run = runner.run("linreg", [*QUICK, "train.steps=11", "record.every_steps=4"])
    assert [row["step"] for row in run.rows] == [4, 8, 11]
    known = {"optimum/loss", "optimum/gap", "optimum/distance"}
    assert run.rows[0].keys() == {"step", "epoch", "train/loss", "lr", "samples_per_second"} | known
    assert run.summary["steps"] == 11


def test_the_loss_of_a_row_is_from_before_its_update() -> None:
    """Compared with gradient descent written out in float64."""
    run = runner.run("curve_fit", [*QUICK, "dtype=float64"])
    x = torch.linspace(0, 15, 16, dtype=torch.float64)
    state = torch.load(run.directory / "checkpoints/last/state.pt", weights_only=True)
    y = _target(run.directory)
    w = torch.zeros((), dtype=torch.float64)
    for row in run.rows:
        assert row["train/loss"] == pytest.approx(
            float((w * x - y).square().mean()), rel=1e-12
        )  # sums of 16 in another order
        w = w - 0.01 * (2 * x * (w * x - y)).mean()
        assert row["param/w"] == pytest.approx(float(w), rel=1e-12)
    assert run.summary["parameters"]["w"] == float(state["model"]["w"])


def _target(run: Path) -> torch.Tensor:
    """Return the target of a run's training rows, built again from its config.yaml."""
    from runner.config.compose import check
    from runner.data import dataset

    config = check(yaml.safe_load((run / "config.yaml").read_text()))
    return (
        dataset.build(config.data, config.seed, torch.float64, torch.device("cpu")).parts["train"].all.target.flatten()
    )


def test_the_hash_is_over_the_raw_parameters() -> None:
    run = runner.run("linreg", [*QUICK, "train.steps=3"])
    model = torch.load(run.directory / "checkpoints/last/state.pt", weights_only=True)["model"]
    digest = hashlib.sha256()
    digest.update(b"bias|float32|1\n" + model["bias"].numpy().tobytes())
    digest.update(b"weight|float32|1,1\n" + model["weight"].numpy().tobytes())
    assert run.summary["parameters_sha256"] == digest.hexdigest()


def test_linreg_is_gradient_descent_in_closed_form() -> None:
    """After k steps the distance to the least-squares solution is (I − lr·H)^k times the distance at the start; H is the Hessian."""
    start, end = (
        runner.run("linreg", [*QUICK, "dtype=float64", f"train.steps={steps}", f"optimizer.lr={lr}"])
        for steps, lr in ((1, 0), (500, 1e-4))
    )
    first, last = (
        torch.tensor([*run.summary["parameters"]["weight"][0], *run.summary["parameters"]["bias"]], dtype=torch.float64)
        for run in (start, end)
    )
    x = torch.arange(1, 91, dtype=torch.float64)
    design = torch.stack([x, torch.ones_like(x)], 1)
    solution = torch.linalg.lstsq(design, _target(end.directory)[:, None]).solution.flatten()
    hessian = 2 * design.T @ design / 90
    shrink = torch.linalg.matrix_power(torch.eye(2, dtype=torch.float64) - 1e-4 * hessian, 500)
    assert torch.allclose(last, solution + shrink @ (first - solution), rtol=1e-10)  # 500 steps of rounding
    assert not torch.allclose(last, first, rtol=1e-3)


def test_standardized_parameters_are_reported_in_the_units_of_the_file() -> None:
    overrides = [*QUICK, "model=linear", "optimizer=lbfgs", "train.steps=20", "dtype=float64"]
    raw = runner.run(None, ["data=diabetes", "data.standardize=true", *overrides])
    table = read_diabetes()
    columns = [torch.from_numpy(column.values) for column in table.features if isinstance(column, Numbers)]
    design = torch.stack([*columns, torch.ones(442, dtype=torch.float64)], 1)
    target = torch.from_numpy(table.targets[0].values)[:, None]
    solution = torch.linalg.lstsq(design, target, driver="gelsd").solution.flatten()
    fitted = torch.tensor(
        raw.summary["parameters"]["weight"][0] + raw.summary["parameters"]["bias"], dtype=torch.float64
    )
    # L-BFGS ends at a gradient of 1e-7; the condition number of the standardized table is about 20.
    assert torch.allclose(fitted, solution, rtol=1e-4, atol=1e-3)


def test_the_same_command_twice_gives_the_same_bits() -> None:
    overrides = [*QUICK, "train.epochs=3"]
    first, second, other = (runner.run("mlp", [*overrides, f"seed={seed}"]) for seed in (0, 0, 1))
    assert (
        first.summary["parameters_sha256"] == second.summary["parameters_sha256"] != other.summary["parameters_sha256"]
    )
    assert first.directory != second.directory


def test_rerun_repeats_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    first = runner.run("mlp", [*QUICK, "train.epochs=2", "run_dir=first"])
    assert cli.main(["rerun", "first", "run_dir=second"]) == 0
    assert cli.main(["rerun", "first", "run_dir=third", "optimizer.lr=0.1"]) == 0
    second, third = (json.loads(Path(name, "summary.json").read_text()) for name in ("second", "third"))
    assert second["parameters_sha256"] == first.summary["parameters_sha256"] != third["parameters_sha256"]
    assert record(Path("second"))["config_hash"] == record(Path("first"))["config_hash"]


def test_float32_and_float64_start_equal() -> None:
    single, double = (
        torch.load(
            runner.run("mlp", [*QUICK, "train.epochs=1", "optimizer.lr=0", f"dtype={dtype}"]).directory
            / "checkpoints/last/state.pt",
            weights_only=True,
        )["model"]
        for dtype in ("float32", "float64")
    )
    assert all(torch.equal(single[name], double[name].float()) for name in double)


@pytest.mark.parametrize(
    "overrides", [["dtype=bfloat16"], ["amp=bfloat16"], ["amp=float16"], ["amp=float16", "update=manual"]], ids=" ".join
)
def test_narrow_types_train(overrides: list[str]) -> None:
    run = runner.run("mlp", [*QUICK, "train.epochs=20", *overrides])
    assert run.summary["metrics"]["valid/r2"] > 0.5
    if "amp=float16" in overrides:
        assert all(row["skipped_steps"] >= 0 for row in run.rows)


def test_accumulation_does_not_change_the_answer() -> None:
    whole, parts = (
        runner.run(
            "mlp",
            [*QUICK, "dtype=float64", "train.epochs=3", "optimizer=sgd", "optimizer.lr=0.05", f"train.accumulate={n}"],
        )
        for n in (1, 5)
    )
    # Sums of 64 rows in five parts differ by rounding only, over 48 steps.
    assert parts.summary["metrics"]["valid/loss"] == pytest.approx(whole.summary["metrics"]["valid/loss"], rel=1e-12)


def test_early_stopping_ends_the_run() -> None:
    overrides = ["train.eval_every_steps=5", "train.early_stopping.patience=3", "optimizer.lr=0", "train.epochs=50"]
    run = runner.run("mlp", [*QUICK, *overrides, "run_dir=early"])
    assert (run.summary["steps"], run.summary["stopped_early"]) == (20, True)
    assert [row["step"] for row in run.rows] == [5, 10, 15, 20]
    assert runner.run(None, ["resume=early"]).summary == run.summary


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_a_compiled_run_is_close_to_the_plain_one() -> None:
    plain, compiled = (
        runner.run("linreg", [*QUICK, "dtype=float64", "train.steps=5", f"train.compile={flag}"])
        for flag in ("false", "true")
    )
    # Fused operations may add 90 rows in another order.
    assert compiled.summary["metrics"]["train/loss"] == pytest.approx(plain.summary["metrics"]["train/loss"], rel=1e-12)


def test_deterministic_sets_the_workspace_of_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    runner.run("linreg", [*QUICK, "train.steps=1", "deterministic=true"])
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled()
    runner.run("linreg", [*QUICK, "train.steps=1"])
    assert not torch.are_deterministic_algorithms_enabled()


# ------------------------------------------------------------------------------------------- console and TensorBoard


def test_without_the_tensorboard_sink_a_run_is_the_same_and_leaves_no_events(
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = runner.run("linreg", [*QUICK, "train.steps=20"])
    assert "tensorboard --logdir" in capsys.readouterr().out
    rows_only = runner.run("linreg", [*QUICK, "train.steps=20", "record.sinks=[jsonl]"])
    assert "tensorboard" not in capsys.readouterr().out
    assert list(both.directory.glob("events.*")) != []
    assert list(rows_only.directory.glob("events.*")) == []
    assert rows_only.summary["parameters_sha256"] == both.summary["parameters_sha256"]
    assert record(rows_only.directory)["config_hash"] == record(both.directory)["config_hash"]


def test_tensorboard_has_final_metrics_and_hyperparameters() -> None:
    run = runner.run("linreg", ["device=cpu", "device.threads=1", "train.steps=400"])
    events = EventAccumulator(str(run.directory))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "lr", "final/train/loss", "final/test/rmse"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [200, 400]
    assert events.Scalars("final/test/rmse")[0].value == pytest.approx(
        run.summary["metrics"]["test/rmse"], rel=1e-6
    )  # kept as float32
    assert "figures/fit" in tags["images"]
    text = events.Tensors("config/text_summary" if "config/text_summary" in tags["tensors"] else "config")[
        0
    ].tensor_proto.string_val[0]
    assert b"lr: 0.0001" in text
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(plugin).session_start_info
    assert start.hparams["lr"].number_value == 1e-4
    assert start.hparams["optimizer"].string_value == "sgd"


def test_the_console_shows_choices_and_results(capsys: pytest.CaptureFixture[str]) -> None:
    run = runner.run("linreg", [*QUICK, "train.steps=400"])
    printed = capsys.readouterr().out
    for text in (
        f"run      {run.directory}", "1 thread\n", "dtype    float32", "data     line: 90 train, 10 test rows of 1 feature → y",
        "model    linear, 2 parameters, loss mse", "update   sgd by hand, lr 0.0001 (constant)", "training 400 steps of 90 rows",
        "step 200/400  train/loss ", "step 400/400  train/loss ", "x = ", "constant = ", f"tensorboard --logdir {run.directory.parent}",
    ):  # fmt: skip
        assert text in printed
    assert re.search(r"train +\S+ +\S+ +\S+ +\S+ *\ntest ", printed)
    assert (run.directory / "run.log").read_text() == printed


def test_a_long_run_prints_about_fifty_rows(capsys: pytest.CaptureFixture[str]) -> None:
    run = runner.run("linreg", [*QUICK, "train.steps=1000", "record.every_steps=1"])
    assert len(run.rows) == 1000
    assert capsys.readouterr().out.count("\nstep ") == 51  # the first row and every twentieth


# -------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    "overrides", [["update=manual"], ["update=optimizer"], ["update=optimizer", "optimizer=adam"]], ids=" ".join
)
def test_a_diverging_run_stops_before_the_update(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "+experiment=linreg",
        *QUICK,
        *overrides,
        "optimizer.lr=1e20",
        "run_dir=bad",
        "record.every_steps=50",
        "checkpoint.every_steps=1",
    ]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    match = re.search(
        r"error: training diverged at step (\d+): the loss became (inf|nan) with lr=1e\+20, the last finite loss was (\S+);",
        error,
    )
    assert match is not None
    step = int(match[1])
    assert f"the parameters of step {step - 1} are restored. Make optimizer.lr smaller" in error
    kept = record(Path("bad"))
    assert (kept["status"], kept["reason"]) == ("failed", error.removeprefix("error: ").rstrip("\n"))
    assert read_rows(Path("bad/metrics.jsonl"))[-1]["step"] == step
    assert '"train/loss": "' in Path("bad/metrics.jsonl").read_text()
    loaded = checkpoint.load(Path("bad/checkpoints"))
    assert loaded is not None
    assert loaded.step == step - 1
    good = (
        runner.run("linreg", [*QUICK, *overrides, "optimizer.lr=1e20", f"train.steps={step - 1}"]).summary
        if step > 1
        else None
    )
    assert good is None or good["parameters_sha256"] == parameters_sha256(loaded.state["model"])
    assert all(value.isfinite().all() for value in loaded.state["model"].values())


def test_a_divergence_that_is_found_late_is_replayed_with_the_optimizer_state() -> None:
    """Losses are read every 1,000 steps only, and the state of the step before the divergence is restored."""
    overrides = [
        *QUICK,
        "update=optimizer",
        "optimizer=momentum",
        "optimizer.momentum=0.9",
        "record.every_steps=1000",
        "optimizer.lr=1e-3",
    ]
    with pytest.raises(runner.Diverged) as end:
        runner.run("linreg", [*overrides, "run_dir=bad"])
    step = int(re.search(r"at step (\d+)", str(end.value))[1])  # type: ignore[index]
    assert 10 < step < 1000
    loaded = checkpoint.load(Path("bad/checkpoints"))
    assert loaded is not None
    good = runner.run("linreg", [*overrides, f"train.steps={loaded.step}"])
    whole = torch.load(good.directory / "checkpoints/last/state.pt", weights_only=True)
    assert loaded.step == step - 1
    for name, slots in whole["optimizer"].items():
        assert torch.equal(slots["momentum_buffer"], loaded.state["optimizer"][name]["momentum_buffer"])
        assert torch.equal(whole["model"][name], loaded.state["model"][name])


def test_a_gradient_that_is_nan_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With clipping the norm shows it at once; without, the next loss does."""
    from runner.training.objective import BatchObjective

    real = BatchObjective._backward

    def spoiled(self: BatchObjective, part: MicroBatch, factor: float) -> torch.Tensor:
        loss = real(self, part, factor)
        if self.step == 7:
            self.parameters[0].grad = torch.full_like(self.parameters[0], float("nan"))
        return loss

    monkeypatch.setattr(BatchObjective, "_backward", spoiled)
    for overrides, step in (["train.clip_norm=10"], 7), (["train.check_gradients=true"], 7), ([], 8):
        with pytest.raises(
            runner.Diverged, match=rf"training diverged at step {step}: .*the parameters of step 6 are restored"
        ):
            runner.run("linreg", [*QUICK, *overrides, "train.steps=20", "record.every_steps=10"])


def test_nan_at_the_last_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.training.objective import BatchObjective

    real = BatchObjective._backward

    def spoiled(self: BatchObjective, part: MicroBatch, factor: float) -> torch.Tensor:
        loss = real(self, part, factor)
        if self.step == 20:
            self.parameters[0].grad = torch.full_like(self.parameters[0], float("nan"))
        return loss

    monkeypatch.setattr(BatchObjective, "_backward", spoiled)
    with pytest.raises(
        runner.Diverged, match=r"step 20: a gradient or a parameter became nan or inf.*parameters of step 19"
    ):
        runner.run("linreg", [*QUICK, "train.steps=20"])


@pytest.mark.parametrize(
    ("start", "named"),
    [
        (
            -2,
            "3 rows of its batch have no finite prediction, such as row 1, 2, 3 of the data; .*, or remove these rows",
        ),
        (0, "row 1 of the data has no finite prediction; .*, or remove this row"),
    ],
)
def test_rows_outside_the_domain_of_a_formula_are_named(start: int, named: str) -> None:
    overrides = [
        "data=line",
        f"data.start={start}",
        f"data.stop={start + 9}",
        "data.rows=10",
        "model=formula",
        "model.expression=a*log(x)+b",
    ]
    with pytest.raises(runner.Diverged, match=named):
        runner.run(None, [*QUICK, *overrides, "data.noise=0"])


def test_a_second_signal_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    faults.at_step(monkeypatch, 7, twice)
    with pytest.raises(
        runner.Interrupted, match="stopped at once by a second signal; the last checkpoint is intact"
    ) as stop:
        runner.run("linreg", [*QUICK, "train.steps=20", "checkpoint.every_steps=5", "run_dir=cut"])
    assert stop.value.exit_code == 143
    loaded = checkpoint.load(Path("cut/checkpoints"))
    assert loaded is not None
    assert loaded.step == 5
    assert record(Path("cut"))["status"] == "interrupted"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_after_a_signal(number: int, code: int) -> None:
    """Another process gets a real signal during training."""
    command = [
        sys.executable,
        "-u",
        "-m",
        "runner",
        "+experiment=linreg",
        *QUICK,
        "train.steps=100000000",
        "run_dir=signalled",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step"):
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == code
    assert "resume with: python -m runner resume=signalled" in out
    assert re.search(r"^stopped after step \d+; the state is saved", err)
    assert checkpoint.load(Path("signalled/checkpoints")) is not None


def test_a_full_disk_is_reported_and_the_old_checkpoint_stays() -> None:
    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    def work() -> None:
        patch = pytest.MonkeyPatch()
        faults.at_step(patch, 7, full)
        os._exit(cli.main(["+experiment=linreg", *QUICK, "train.steps=20", "checkpoint.every_steps=5", "run_dir=full"]))

    assert os.waitstatus_to_exitcode(faults.in_child(work)) == 1
    loaded = checkpoint.load(Path("full/checkpoints"))
    assert loaded is not None
    assert loaded.step == 5
    # 2,000 bytes are enough for the small files, but not for a state. A full disk would not take run.json either.
    assert not list(Path("full").rglob("*.tmp*"))
    assert "free" in record(Path("full"))["reason"]


def test_a_checkpoint_that_cannot_be_written_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faults.at_step(monkeypatch, 3, lambda: Path("blocked/checkpoints").write_text("a file"))
    assert cli.main(["+experiment=linreg", *QUICK, "train.steps=20", "run_dir=blocked"]) == 1
    assert "error: saving step 20 failed: " in capsys.readouterr().err
    assert record(Path("blocked"))["status"] == "failed"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("", "data and model must fit in memory, but do not; make `data.rows` or `data.features` or `model` smaller"),
        (
            "data=csv data.path=t.csv data.target=y model=mlp",
            "data and model must fit in memory, but do not; make `data.path` or `model.widths` smaller",
        ),
    ],
)
def test_memory_that_runs_out_before_training_is_reported_by_the_keys_that_need_it(
    overrides: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes that are known before are refused earlier: tests/faults/test_sizes.py."""

    def full(*arguments: object, **more: object) -> None:
        raise MemoryError

    monkeypatch.setattr("runner.training.build.data.build", full)
    defaults: Any = build.prepare.__kwdefaults__
    monkeypatch.setitem(defaults, "build_data", full)
    assert cli.main([*QUICK, *overrides.split()]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("run_dir", "text"),
    [
        (".", "must name a new directory, got '.'"),
        ("/", "must name a new directory, got '/'"),
        ("a" * 300, "File name too long"),
        ("a\0b", "null byte"),
    ],
)
def test_an_impossible_run_dir_is_refused(run_dir: str, text: str) -> None:
    from runner.runs.directory import RunDirectory

    with pytest.raises(runner.ConfigError, match="`run_dir` must ") as refused:
        RunDirectory.create("linreg", run_dir, "", {})
    assert text in str(refused.value)
    assert not list(Path().iterdir())


def test_values_kept_from_the_experiment_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["+experiment=linreg", *QUICK, "optimizer=adam", "train.steps=1"]) == 0
    assert "note: kept from the experiment: `optimizer.lr`=0.0001 (adam: 0.001)\n" in capsys.readouterr().out
    assert cli.main(["+experiment=linreg", *QUICK, "optimizer=adam", "optimizer.lr=0.1", "train.steps=1"]) == 0
    assert "kept from" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- from Python


@pytest.mark.parametrize("overrides", ["seed=3", [3]])
def test_overrides_are_a_list_of_texts(overrides: Any) -> None:
    with pytest.raises(runner.ConfigError, match="`overrides` must be a list of strings such as"):
        runner.run("linreg", overrides)


def test_several_seeds_are_no_single_run() -> None:
    with pytest.raises(
        runner.ConfigError, match=r"^`seeds` must be left out in a call of runner.run, which is one run; "
    ):
        runner.run("linreg", ["seeds=3"])
    assert not Path("runs").exists()


def test_errors_are_raised_and_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(runner.ConfigError, match=r"`optimizer.lrr` is not a key; did you mean `optimizer.lr`\?"):
        runner.run("linreg", ["optimizer.lrr=1"])
    assert capsys.readouterr() == ("", "")
    assert not list(Path().iterdir())


def test_the_random_numbers_of_the_caller_are_preserved() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    runner.run("diabetes", [*QUICK, "train.epochs=1"])
    assert torch.equal(torch.rand(4), expected)


def test_the_public_names_are_complete() -> None:
    assert sorted(runner.__all__) == runner.__all__
    assert all(hasattr(runner, name) for name in runner.__all__)
    assert callable(runner.run)


def test_a_step_that_the_loss_scaler_skips_is_no_divergence() -> None:
    """The first scale is too large for these numbers: the norm of a skipped step is inf and must be ignored."""
    for overrides in (["train.clip_norm=1"], ["train.check_gradients=true"]):
        run = runner.run("linreg", [*QUICK, *overrides, "amp=float16", "train.steps=25", "record.every_steps=25"])
        assert run.rows[-1]["skipped_steps"] > 0


def test_fewer_steps_than_the_run_has_taken_are_refused() -> None:
    runner.run("linreg", [*QUICK, "train.steps=20", "run_dir=done"])
    with pytest.raises(
        runner.ConfigError, match=r"`train.steps` must be at least 20, the step that the run has reached, got 12"
    ):
        runner.run(None, ["resume=done", "train.steps=12"])
    assert record(Path("done"))["status"] == "finished"


def test_a_lost_summary_is_written_again() -> None:
    first = runner.run("linreg", [*QUICK, "train.steps=20", "run_dir=done"]).summary
    Path("done/summary.json").unlink()
    again = runner.run(None, ["resume=done"]).summary
    assert {**again, "timing": None} == {**first, "timing": None}
    assert [row["step"] for row in read_rows(Path("done/metrics.jsonl"))] == [20]


def test_a_closed_pipe_does_not_stop_the_run() -> None:
    command = (
        f"{sys.executable} -m runner +experiment=linreg {' '.join(QUICK)} train.steps=3000 run_dir=piped | head -2"
    )
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert record(Path("piped"))["status"] == "finished"


def test_an_ascii_terminal_gets_question_marks() -> None:
    command = [sys.executable, "-m", "runner", "+experiment=linreg", *QUICK, "train.steps=3"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=True
    )
    assert "rows of 1 feature ? y" in done.stdout


def test_early_stopping_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["train.eval_every_steps=5", "train.early_stopping.patience=2", "optimizer.lr=0", "train.epochs=50"]
    runner.run("mlp", [*QUICK, *overrides])
    assert re.search(
        r"stopped  early: valid/loss has not become better than \S+ in 2 evaluations", capsys.readouterr().out
    )


@pytest.mark.parametrize("strategy", ["dp", "ddp"])
def test_a_strategy_for_several_devices_runs_as_single_on_one(
    strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = runner.run("linreg", [*QUICK, "train.steps=5"])
    run = runner.run("linreg", [*QUICK, "train.steps=5", f"strategy={strategy}"])
    assert f"note: `strategy`={strategy} has one device to work on, so the run is single" in capsys.readouterr().out
    assert record(run.directory)["strategy"] == "single"
    assert yaml.safe_load((run.directory / "config.yaml").read_text())["strategy"]["name"] == "single"
    assert run.summary["parameters_sha256"] == whole.summary["parameters_sha256"]


def test_an_exact_run_uses_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    run = runner.run("linreg", [*QUICK, "train.steps=5", "strategy.reduction=exact"])
    assert record(run.directory)["threads"] == 1
    assert yaml.safe_load((run.directory / "config.yaml").read_text())["device"]["threads"] == 1


def test_the_python_function_starts_no_processes() -> None:
    with pytest.raises(
        runner.ConfigError, match=r"`launch.processes` and `launch.nodes` must be 1 in a call from Python"
    ):
        runner.run("linreg", ["launch.processes=2"])
