"""Cells of a parity table and which of them can run on machines without a GPU and on CUDA, ROCm and Apple machines."""

from __future__ import annotations

from typing import get_args

import pytest

from runner.commands.parity.cells import (
    AXES,
    Cell,
    ParityRequest,
    axis_values,
    obstacles,
    read_request,
    why_unavailable,
)
from runner.compute.devices import Hardware, TorchBuild
from runner.config import introspection
from runner.config.schema import Config, Device
from runner.errors import ConfigError

CPU = Hardware(build=TorchBuild("2.13.0+cpu", None, None), cpu_name="AMD EPYC")
H200 = Hardware(build=TorchBuild("2.13.0+cu130", "13.0", None), gpu_count=2, gpu_names=("NVIDIA H200",) * 2)
ONE_H200 = Hardware(build=TorchBuild("2.13.0+cu130", "13.0", None), gpu_count=1, gpu_names=("NVIDIA H200",))
MI300 = Hardware(build=TorchBuild("2.13.0+rocm7.1", None, "7.1"), gpu_count=2, gpu_names=("AMD Instinct MI300X",) * 2)
APPLE = Hardware(build=TorchBuild("2.13.0", None, None), cpu_name="Apple M3", mps=True)


def request(*overrides: str) -> ParityRequest:
    return read_request(["+experiment=linreg", *overrides], None)


@pytest.fixture(scope="module")
def linreg() -> ParityRequest:
    return request("optimizer=sgd")


def reasons(table: ParityRequest, cell: Cell, hardware: Hardware) -> tuple[str, ...]:
    return obstacles(table.config(cell), table.processes_of(cell), {}, hardware)


# -------------------------------------------------------------------------------------------------------- requested tables


def test_the_axes_are_those_of_the_schema() -> None:
    axes = axis_values()
    assert tuple(axes) == AXES
    assert axes["device"] == ("cpu", "cuda", "rocm", "mps", "xpu")
    assert axes["strategy"] == ("single", "dp", "ddp", "fsdp", "tensor", "pipeline")
    assert axes["dtype"] == get_args(introspection.hints(Config)["dtype"])
    assert axes["optimizer"] == tuple(introspection.variants(introspection.hints(Config)["optimizer"]))


def test_an_override_restricts_an_axis() -> None:
    table = request("dtype=float64", "strategy=ddp,single", "optimizer=momentum,sgd", "optimizer.lr=1e-5")
    assert [str(cell) for cell in table.cells(["cpu"])] == [
        f"device=cpu dtype=float64 strategy={strategy} update={update} optimizer={optimizer}"
        for strategy in ("single", "ddp")
        for update in ("manual", "optimizer")
        for optimizer in ("sgd", "momentum")
    ]
    config = table.config(Cell("cuda", "float64", "ddp", "manual", "momentum"))
    assert (config.device.name, config.dtype, config.strategy.name) == ("cuda", "float64", "ddp")
    assert (config.update, config.optimizer.name, config.optimizer.lr) == ("manual", "momentum", 1e-5)
    assert config.launch.processes == 2


def test_the_last_of_two_overrides_of_an_axis_counts() -> None:
    table = request("optimizer=sgd", "dtype=float64", "dtype=float32")
    assert table.axes["dtype"] == ("float32",)
    assert table.notices[0] == "`dtype` is given twice; the last one counts: float32"


def test_a_cell_has_one_thread_and_records_each_step(linreg: ParityRequest) -> None:
    config = linreg.config(Cell("cpu", "float64", "single", "manual", "sgd"))
    assert (config.device.threads, config.record.every_steps, config.record.plots) == (1, 1, False)
    assert request("device.threads=3", "optimizer=sgd").bases["sgd"].device.threads == 3


def test_the_command_of_a_cell_computes_only_that_cell() -> None:
    table = request("launch.processes=3", "seed=4", "optimizer=sgd")
    cell = Cell("cpu", "float32", "ddp", "manual", "sgd")
    assert table.command(cell, 7) == [
        "python", "-m", "runner", "+experiment=linreg", "seed=4", "device=cpu", "dtype=float32", "strategy=ddp",
        "update=manual", "optimizer=sgd", "train.steps=7", "device.threads=1", "launch.processes=3",
    ]  # fmt: skip
    single = table.command(Cell("cpu", "float32", "single", "manual", "sgd"), 7)
    assert single[-2:] == ["train.steps=7", "device.threads=1"]


def test_only_an_optimizer_without_an_overridden_key_is_refused() -> None:
    table = request("optimizer=adam,sgd", "optimizer.eps=1e-6")
    assert list(table.bases) == ["adam"]
    (reason,) = table.refused["sgd"]
    assert reason.startswith("`optimizer.eps`")


@pytest.mark.parametrize(
    ("overrides", "problems"),
    [
        (["dtype=float32,half"], ["`dtype` must be among float64, float32, bfloat16, float16, got half; leave it out for all"]),
        (["strategy=auto"], ["`strategy` must be among single, dp, ddp, fsdp, tensor, pipeline, got auto; leave it out for all"]),
        (["run_dir=here"], ["`run_dir` cannot be used with parity: use --out DIR for the directory of the table"]),
        (["amp=bfloat16"], ["`amp` must be off for parity, whose reference is float64, got bfloat16; use amp=off, and dtype for the dtypes"]),
        (
            ["update=by_hand", "seed=many"],
            [
                "`update` must be among manual, optimizer, got by_hand; leave it out for all",
                "`seed` must be an integer from 0 to 4294967295, got 'many'",
            ],
        ),
    ],
)  # fmt: skip
def test_bad_requests_are_refused(overrides: list[str], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        request("optimizer=sgd", *overrides)
    assert list(raised.value.problems) == problems


def test_dropout_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`model.dropout` must be 0 for parity"):
        read_request(["+experiment=mlp", "model.dropout=0.1", "optimizer=sgd"], None)


# ----------------------------------------------------------------------------------------------------------- available cells


@pytest.mark.parametrize(
    ("hardware", "present"), [(CPU, {"cpu"}), (H200, {"cpu", "cuda"}), (MI300, {"cpu", "rocm"}), (APPLE, {"cpu", "mps"})]
)  # fmt: skip
def test_the_devices_of_a_machine(linreg: ParityRequest, hardware: Hardware, present: set[str]) -> None:
    device: Device = linreg.bases["sgd"].device
    unavailable = {name: why_unavailable(device, name, {}, hardware) for name in axis_values()["device"]}
    assert {name for name, why in unavailable.items() if not why} == present
    assert all(f"`device={name}` needs" in why[0] for name, why in unavailable.items() if why)


@pytest.mark.parametrize(
    ("hardware", "cell", "reason"),
    [
        (CPU, "cpu float64 ddp", None),
        (CPU, "cpu float16 single", "`dtype` must not be float16 with `device`=cpu"),
        (CPU, "cpu float32 dp", "`strategy`=dp has only one device here, so the run would use single"),
        (CPU, "cuda float32 single", "`device=cuda` needs a CUDA build of torch"),
        (H200, "cuda float16 fsdp", None),
        (H200, "cuda float32 dp", None),
        (ONE_H200, "cuda float64 single", None),
        (ONE_H200, "cuda float64 ddp", "the 2 processes on this host need a GPU each, but 1 is visible"),
        (MI300, "rocm bfloat16 ddp", None),
        (APPLE, "mps float32 single", None),
        (APPLE, "mps float64 single", "`dtype` must not be float64 with `device`=mps"),
        (APPLE, "mps float32 ddp", "the 2 processes on this host need a GPU each, but 1 is visible"),
    ],
    ids=str,
)
def test_why_a_cell_cannot_run(linreg: ParityRequest, hardware: Hardware, cell: str, reason: str | None) -> None:
    device, dtype, strategy = cell.split()
    texts = reasons(linreg, Cell(device, dtype, strategy, "manual", "sgd"), hardware)
    assert [text.startswith(reason or "") for text in texts] == ([] if reason is None else [True])


def test_a_cell_that_cannot_run_has_all_its_reasons() -> None:
    curve = read_request(["+experiment=curve_fit", "optimizer=lbfgs"], None)
    texts = reasons(curve, Cell("cpu", "float64", "fsdp", "manual", "lbfgs"), CPU)
    assert [text.partition(",")[0] for text in texts] == [
        "`update` must be optimizer with `optimizer`=lbfgs",
        "`strategy` must be single",
        "`strategy` must be single",
    ]
