"""Measure what the runner costs, compared with hand-written loops and processes: medians of interleaved measurements.

    python benchmarks/overhead.py [steps|process] [--rounds N]

`steps` compares the seconds of a training, with TensorBoard and JSONL at their defaults, with a loop over tensors in memory
that has the same model, start values, optimizer and batches. `process` compares the processor time of a whole `linreg`
with a process that imports torch and runs the loop, and that of a fit by `lm` with a process that imports torch and calls
SciPy's `curve_fit` on the same table. Everything uses one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

THREADS = ["device=cpu", "device.threads=1"]
LINREG = ["train.steps=5000", "record.every_steps=200"]
MLP = [
    "name=mlp", "data=line", "data.rows=50000", "data.features=9", "data.standardize=true", "model=mlp", "model.widths=[64,64]",
    "model.activation=relu", "train.steps=3000", "train.batch_size=256",
]  # fmt: skip

HAND_PROCESS = """
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.arange(1.0, 101.0).unsqueeze(1)
y = x + 10 * torch.randn(100, 1)
x_train, y_train, x_test, y_test = x[:90], y[:90], x[90:], y[90:]
weight, bias = torch.rand(1, 1, requires_grad=True), torch.rand(1, requires_grad=True)
for step in range(1, 2001):
    loss = torch.nn.functional.mse_loss(x_train @ weight + bias, y_train)
    loss.backward()
    with torch.no_grad():
        for p in (weight, bias):
            p -= 1e-4 * p.grad
            p.grad = None
    if step % 200 == 0:
        print(step, loss.item())
print(weight.item(), bias.item(), torch.nn.functional.mse_loss(x_test @ weight + bias, y_test).item())
"""

TABLE = Path(__file__).parents[1] / "experiments" / "curve_fit" / "measured.csv"
FIT = [
    "data=csv", f"data.path={TABLE}", "data.target=y", "model=formula", "model.expression=a*exp(-b*x)+c", "model.start={a: 1, b: 1, c: 1}",
    "optimizer=lm", "dtype=float64",
]  # fmt: skip

SCIPY_PROCESS = f"""
import torch
torch.set_num_threads(1)
import numpy as np
from scipy.optimize import curve_fit
x, y = np.loadtxt({str(TABLE)!r}, delimiter=",", skiprows=1).T
found, covariance = curve_fit(lambda x, a, b, c: a * np.exp(-b * x) + c, x, y, [1, 1, 1])
print(found, np.sqrt(np.diag(covariance)))
"""


def linreg(manual: bool, optimizer: str) -> Callable[[], float]:
    """Return a function that takes 5,000 hand-written full-batch steps and returns the seconds."""
    import torch

    def once() -> float:
        x = torch.linspace(1, 100, 100).unsqueeze(1)[:90]
        y = x + 10 * torch.randn(90, 1)
        model = torch.nn.Linear(1, 1)
        return _train(model, lambda step: (x, y), 5_000, 1e-4, manual, optimizer)

    return once


def mlp(manual: bool, optimizer: str) -> Callable[[], float]:
    """Return a function that takes 3,000 hand-written steps and returns the seconds: 9-64-64-1, 50,000 rows, shuffled batches of 256."""
    import torch
    from torch import nn

    def once() -> float:
        x, y = torch.randn(50_000, 9), torch.randn(50_000, 1)
        model = nn.Sequential(nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
        per_epoch, order = -(-50_000 // 256), torch.empty(0)

        def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal order
            k = step % per_epoch
            if k == 0:
                order = torch.randperm(50_000)
            rows = order[k * 256 : (k + 1) * 256]
            return x[rows], y[rows]

        return _train(model, batch, 3_000, 1e-3, manual, optimizer)

    return once


def _train(model: Any, batch: Callable[[int], Any], steps: int, lr: float, manual: bool, optimizer: str) -> float:
    import torch

    parameters = list(model.parameters())
    updates = None if manual else _library(optimizer, parameters, lr)
    state = _by_hand(optimizer, parameters, lr)
    began = time.perf_counter()
    for step in range(steps):
        x, y = batch(step)
        loss = torch.nn.functional.mse_loss(model(x), y)
        if updates is not None:
            updates.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if updates is not None:
            updates.step()
        else:
            state()
    loss.item()
    return time.perf_counter() - began


def _library(name: str, parameters: Any, lr: float) -> Any:
    import torch

    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adam fused": torch.optim.Adam}[name]
    return kind(parameters, lr=lr, **({"fused": True} if name == "adam fused" else {}))


def _by_hand(name: str, parameters: Any, lr: float) -> Callable[[], None]:
    import torch

    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    taken = 0

    def sgd() -> None:
        with torch.no_grad():
            for p in parameters:
                p -= lr * p.grad
                p.grad = None

    def adam() -> None:
        nonlocal taken
        taken += 1
        with torch.no_grad():
            for p, m, v in zip(parameters, first, second, strict=True):
                m.mul_(0.9).add_(p.grad, alpha=0.1)
                v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                p -= lr * (m / (1 - 0.9**taken)) / ((v / (1 - 0.999**taken)).sqrt() + 1e-8)
                p.grad = None

    return sgd if name == "sgd" else adam


def ours(experiment: str | None, overrides: Sequence[str]) -> Callable[[], float]:
    """Return a function that trains one run and returns the seconds, with rows, events and checkpoint."""
    import contextlib
    import io

    import runner

    def once() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            run = runner.run(experiment, [*THREADS, "record.plots=false", *overrides])
        return float(run.summary["timing"]["seconds"])

    return once


def interleaved(a: Callable[[], float], b: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    """Return the median seconds of a and of b, and the median ratio a/b: one pair per round, after a warm-up."""
    a(), b()
    pairs = [(a(), b()) for _ in range(rounds)]
    return (
        statistics.median(x for x, _ in pairs),
        statistics.median(y for _, y in pairs),
        statistics.median(x / y for x, y in pairs),
    )


def steps(rounds: int) -> None:
    """Print the table of training steps."""
    import torch

    torch.set_num_threads(1)
    print(
        "| training steps | update | runner µs/step | hand-written µs/step | ratio |\n| --- | --- | ---: | ---: | ---: |"
    )
    cases: list[tuple[str, str, Callable[[], float], Callable[[], float], int]] = []
    for name, experiment, base, hand, count in (
        ("linreg", "linreg", LINREG, linreg, 5_000),
        ("MLP 9-64-64-1, batch 256", None, MLP, mlp, 3_000),
    ):
        for update, optimizer, against in (
            ("optimizer", "sgd", "sgd"),
            ("optimizer", "adam", "adam"),
            ("optimizer", "adam", "adam fused"),
            ("manual", "sgd", "sgd"),
            ("manual", "adam", "adam"),
            ("manual", "adam", "library adam"),
        ):
            lr = "1e-4" if experiment == "linreg" else "1e-3"
            run = ours(experiment, [*base, f"update={update}", f"optimizer={optimizer}", f"optimizer.lr={lr}"])
            by_library = update == "optimizer" or against.startswith("library")
            cases.append(
                (
                    name,
                    f"{update}, {optimizer} against {against}",
                    run,
                    hand(not by_library, against.removeprefix("library ")),
                    count,
                )
            )
    for name, update, run, loop, count in cases:
        a, b, ratio = interleaved(run, loop, rounds)
        print(f"| {name} | {update} | {a / count * 1e6:.1f} | {b / count * 1e6:.1f} | {ratio:.3f} |", flush=True)


def processor_seconds(command: Sequence[str]) -> float:
    """Run a process. Returns its user and system time in seconds, threads included, as the kernel counts them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # keep bytecode, as usual
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def processes(rounds: int) -> None:
    """Print the table of whole processes."""
    line = [sys.executable, "-m", "runner", "+experiment=linreg", *THREADS]
    fit = [sys.executable, "-m", "runner", *FIT, *THREADS]
    loop, scipy = ([sys.executable, "-c", text] for text in (HAND_PROCESS, SCIPY_PROCESS))
    print("| whole process | runner s | hand-written s | ratio |\n| --- | ---: | ---: | ---: |")
    for name, command, hand in (
        ("linreg, without plots", [*line, "record.plots=false"], loop),
        ("linreg, with plots", line, loop),
        ("a fit by lm, without plots", [*fit, "record.plots=false"], scipy),
        ("a fit by lm, with plots", fit, scipy),
    ):
        a, b, ratio = interleaved(lambda c=command: processor_seconds(c), lambda c=hand: processor_seconds(c), rounds)  # type: ignore[misc]
        print(f"| {name} | {a:.2f} | {b:.2f} | {ratio:.2f} |", flush=True)
    a = statistics.median(processor_seconds([sys.executable, "-m", "runner", "--help"]) for _ in range(rounds))
    print(f"| --help | {a:.2f} | | |")


def main() -> None:
    """Print the requested table; both without an argument."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", choices=["steps", "process"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(Path(folder))
        for table in [arguments.table] if arguments.table else ["steps", "process"]:
            {"steps": steps, "process": processes}[table](arguments.rounds)


if __name__ == "__main__":
    main()
