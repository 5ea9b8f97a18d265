"""A run starts from the same numbers on every device: parameters and data, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from gpu.devices import DEVICE, composed, needs_device, needs_gpu, parts, read_json, resume, rows, train
from runner.compute.devices import DeviceChoice
from runner.runs.sinks.jsonl import read_rows
from runner.training import build

pytestmark = needs_device

CPU = DeviceChoice("cpu", "cpu", "CPU", "cpu")
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LINE = ("data=line", "data.rows=40", "data.features=2", "data.split.valid=5", "data.standardize=true")
MODELS = {
    "linear uniform": (*LINE, "model=linear", "model.init=uniform"),
    "linear kaiming": (*LINE, "model=linear", "model.init=kaiming"),
    "polynomial normal": (*LINE, "model=polynomial", "model.degree=3", "model.init=normal"),
    "mlp": (*LINE, "model=mlp", "model.widths=[16,8]"),
    "formula": ("data=curve", "data.rows=40", "model=formula", "model.expression=a*exp(-b*x)", "model.init=normal"),
}


def test_the_run_is_on_the_device() -> None:
    run = train("run", "+experiment=linreg", "train.steps=5")
    record = read_json(run / "run.json")
    assert (record["status"], record["device"]) == ("finished", DEVICE)
    if DEVICE != "cpu":
        assert record["device_name"] == torch.cuda.get_device_name(0)
    assert [row["step"] for row in rows(run)] == [5]


@needs_gpu
def test_auto_takes_the_gpu() -> None:
    run = train("run", "+experiment=linreg", "train.steps=1", "device=auto")
    assert read_json(run / "run.json")["device"] == DEVICE


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_and_data_start_with_the_bits_of_the_cpu(dtype: str, model: str) -> None:
    """The CPU takes no float16 for a run, but its float64 numbers are what every dtype is rounded from."""
    if (dtype, DEVICE) == ("float16", "cpu"):
        pytest.skip("a run on the CPU does not take float16")
    here = parts(*MODELS[model], f"dtype={dtype}")
    there = build.prepare(replace(composed(*MODELS[model])[0], dtype="float64"), CPU, 1)[0]
    started, expected = here.parameters()[0], dict(there.model.named_parameters())
    assert started.keys() == expected.keys()
    for name, value in started.items():
        assert value.device.type == ("cpu" if DEVICE == "cpu" else "cuda")
        assert torch.equal(value.detach().cpu(), expected[name].detach().to(DTYPES[dtype])), name
    for part, table in here.info.dataset.parts.items():
        other = there.dataset.parts[part]
        assert torch.equal(table.all.numbers.cpu(), other.all.numbers.cpu().to(DTYPES[dtype])), part
        assert torch.equal(table.all.target.cpu(), other.all.target.cpu().to(DTYPES[dtype])), part


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_hash_of_step_0_is_that_of_the_cpu(dtype: str) -> None:
    overrides = (*MODELS["mlp"], f"dtype={dtype}", "train.steps=1", "record.hash_every_steps=1")
    here, there = (train(folder, *overrides, device) for folder, device in _places())
    first, second = (read_rows(run / "hashes.jsonl")[0] for run in (here, there))
    assert first["step"] == 0
    assert first == second


def test_rows_are_drawn_and_split_as_on_the_cpu() -> None:
    """The order of the minibatches is drawn on the CPU, so the epochs of a run visit the same rows on every device."""
    overrides = (*MODELS["mlp"], "train.batch_size=16", "data.split.order=random", "train.steps=1")
    here = parts(*overrides)
    there = parts(*overrides, "device=cpu")
    for step in range(1, 9):
        assert _numbers(here.batches.at(step)) == _numbers(there.batches.at(step))
    assert here.info.dataset.sha256 == there.info.dataset.sha256


def test_a_finished_run_that_is_resumed_has_nothing_left_to_do() -> None:
    run = train("run", "+experiment=linreg", "train.steps=3")
    before = (run / "metrics.jsonl").read_bytes()
    assert resume(run) == run
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="strategy=dp would use all GPUs of this machine")
def test_dp_on_one_gpu_is_single_and_says_so() -> None:
    run = train("run", "+experiment=linreg", "train.steps=3", "strategy=dp")
    assert read_json(run / "run.json")["strategy"] == "single"
    assert "`strategy`=dp has one device to work on, so the run is single" in (run / "run.log").read_text()


def _places() -> Sequence[tuple[str, str]]:
    return ("here", f"device={DEVICE}"), ("there", "device=cpu")


def _numbers(chosen: torch.Tensor | slice) -> list[int]:
    assert isinstance(chosen, torch.Tensor)
    return [int(number) for number in chosen.cpu()]
