"""Probes of the machine: the report of torch from a child process, however that ends, and the cards found without torch."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from runner.commands.doctor import child, probes
from runner.commands.doctor.findings import findings
from runner.commands.doctor.machine import Gpu, from_json
from runner.compute.devices import Hardware, TorchBuild, installed_build


def test_this_machine_is_recorded_and_survives_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setenv("SECRET", "x")
    found = probes.collect()
    assert found.build == installed_build()
    assert found.torch is not None
    assert found.torch.hardware.build == found.build
    assert (found.torch.threads, found.torch.numpy_fault, found.torch_fault) == (1, None, None)
    assert "gloo" in found.torch.backends
    assert found.environ["CUDA_VISIBLE_DEVICES"] == "-1"
    assert "SECRET" not in found.environ
    assert {p.name for p in found.packages} > {"torch", "hydra-core", "tensorboard"}
    assert from_json(json.loads(json.dumps(dataclasses.asdict(found)))) == found
    assert [f.subject for f in findings(found) if f.state == "broken"] == []


# ------------------------------------------------------------------------------------------------------ report of torch


def fault_of(monkeypatch: pytest.MonkeyPatch, folder: Path, source: str, seconds: float = 60) -> str | None:
    """Return why there is no report from a torch whose package is this source."""
    (folder / "torch").mkdir()
    (folder / "torch" / "version.py").write_text("__version__ = '2.13.0'\n")
    (folder / "torch" / "__init__.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    report, fault = probes.query_torch(seconds)
    assert report is None
    return fault


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("print('a word')\nraise ImportError('libcudart.so.13: cannot open\\nmore')", "libcudart.so.13: cannot open"),
        ("raise RuntimeError", "RuntimeError"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "it crashes Python with SIGSEGV"),
        ("import os\nos._exit(3)", "it exits Python with code 3"),
        ("print('{}')\nimport os\nos._exit(0)", "it exits Python with code 0"),
    ],
)
def test_a_torch_that_cannot_be_imported(
    source: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fault_of(monkeypatch, tmp_path, source) == fault


def test_a_torch_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import threading\nthreading.Event().wait()"
    assert fault_of(monkeypatch, tmp_path, source, seconds=0.5) == "it does not answer within 0.5 seconds"


def test_a_python_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    report, fault = probes.query_torch(60)
    assert report is None
    assert str(fault).startswith("no process can be started to import it (")


def test_the_error_of_a_first_computation_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    build = TorchBuild("2.13.0+cu130", "13.0", None)
    hardware = Hardware(build=build, gpu_count=1, gpu_names=("NVIDIA H200",))
    properties = SimpleNamespace(name="NVIDIA H200", total_memory=141 * 2**30, major=9, minor=0)
    monkeypatch.setattr(child, "probe", lambda: hardware)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    monkeypatch.setattr(torch, "ones", refuse)
    assert child.report().gpus == (
        Gpu(name="NVIDIA H200", memory_gib=141.0, capability="9.0", fault="CUDA error: no kernel image is available"),
    )
    properties.gcnArchName = "gfx942:sramecc+:xnack-"
    assert child.report().gpus[0].capability == "gfx942"


# ------------------------------------------------------------------------------------------------------------- cards


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulate a machine without programs and cards."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("PCI", "NVIDIA_MODULE", "CPU_LIMIT"):
        monkeypatch.setattr(probes, name, tmp_path / name)
    return tmp_path


def tool(folder: Path, text: str, code: int = 0) -> None:
    (folder / "nvidia-smi").write_text(f"#!{sys.executable}\nprint({text!r}, end='')\nraise SystemExit({code})\n")
    (folder / "nvidia-smi").chmod(0o755)


def pci(folder: Path, name: str, vendor: str, kind: str) -> None:
    (folder / "PCI" / name).mkdir(parents=True)
    (folder / "PCI" / name / "vendor").write_text(f"{vendor}\n")
    (folder / "PCI" / name / "class").write_text(f"{kind}\n")


def test_no_cards(folder: Path) -> None:
    assert probes.cards() == ({}, None)


def test_nvidia_smi_names_cards_and_driver(folder: Path) -> None:
    tool(folder, "NVIDIA H200, 580.65.06\nNVIDIA H200, 580.65.06\n")
    pci(folder, "0000:01:00.0", "0x10de", "0x030200")
    pci(folder, "0000:02:00.0", "0x8086", "0x030000")
    found = {"nvidia": ("NVIDIA H200", "NVIDIA H200"), "intel": ("PCI 0000:02:00.0",)}
    assert probes.cards() == (found, "580.65.06")


def test_cards_are_listed_if_nvidia_smi_fails(folder: Path) -> None:
    tool(folder, "NVIDIA-SMI has failed because, well, it did\n", code=9)
    pci(folder, "0000:01:00.0", "0x10de", "0x030200")
    pci(folder, "0000:01:00.1", "0x10de", "0x040300")  # its audio device
    pci(folder, "0000:c1:00.0", "0x1002", "0x120000")
    pci(folder, "0000:c2:00.0", "0x1a03", "0x030000")  # the display controller of a server
    found = {"nvidia": ("PCI 0000:01:00.0",), "amd": ("PCI 0000:c1:00.0",)}
    assert probes.cards() == (found, None)
    (folder / "NVIDIA_MODULE").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 13.3.0\n"
    )
    assert probes.cards() == (found, "580.65.06")


def test_cards_are_assigned_to_vendors_by_name() -> None:
    names = "AMD Radeon RX 7900 XTX\r\n\r\nNVIDIA GeForce RTX 4090\r\nIntel(R) UHD Graphics\r\nMicrosoft Basic Display Adapter\r\n"
    assert probes.by_vendor(names) == {
        "amd": ("AMD Radeon RX 7900 XTX",),
        "nvidia": ("NVIDIA GeForce RTX 4090",),
        "intel": ("Intel(R) UHD Graphics",),
    }


@pytest.mark.parametrize(("limit", "expected"), [("50000 100000", 0.5), ("max 100000", None), ("", None)])
def test_a_container_may_limit_the_cores(folder: Path, limit: str, expected: float | None) -> None:
    all_cores = probes.cores()
    (folder / "CPU_LIMIT").write_text(limit)
    assert probes.cores() == (all_cores if expected is None else expected)
