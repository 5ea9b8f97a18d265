"""Measures how far the answer depends on how it is computed, and writes docs/exactness.md: `python docs/exactness.py`.

Every run is a real one through `runner.run`, on one process or under torchrun with gloo on the CPU; runs on the same number
of processes share the processes. Exit 1 says that a promise is not kept; the page is written all the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("exactness.md")

EXPERIMENT = [
    "+experiment=diabetes", "data.split.valid=32", "model.widths=[16,12]", "train.epochs=null",
    "train.batch_size=20", "train.clip_norm=0.5", "train.eval_every_steps=50", "train.early_stopping.patience=null",
    "checkpoint.every_steps=null", "optimizer.lr=0.01", "optimizer.weight_decay=0.01", "record.plots=false", "device=cpu", "device.threads=1",
]  # fmt: skip
"""321 training rows: sixteen batches of 20 rows an epoch, and one of a single row, which leaves other processes with none."""

FAST = ["model.dropout=0", "train.steps=200", "dtype=float64"]
EXACT = ["strategy.reduction=exact", "model.dropout=0.2", "train.steps=100"]
STRATEGIES = {
    "ddp": ((2, 3, 4), ["strategy=ddp"]),
    "fsdp": ((2, 3, 4), ["strategy=fsdp"]),
    "tensor": ((2, 4), ["strategy=tensor"]),
    "pipeline": ((2, 3), ["strategy=pipeline"]),
    "fsdp × tensor, 2 × 2": ((4,), ["strategy=fsdp", "strategy.tensor_parallel=2"]),
}
RULES = list(product(("sgd", "momentum", "adam", "adamw"), ("manual", "optimizer")))
DTYPES = ("float32", "float64")
SIZES = (1, 2, 3, 4, 8)
EXACT_SIZES = (1, 2, 4, 8)

BARS = {"sgd": 1e-12, "momentum": 1e-12, "adam": 1e-10, "adamw": 1e-10}
METRICS_BAR = 1e-12
PARITY = ("linreg", "curve_fit", "mlp")
"""Experiments that are computed in every way there is on a CPU."""

CHANGES: tuple[tuple[str, list[str], dict[str, str]], ...] = (
    ("nothing, another process", [], {}),
    ("`device.threads=2`", ["device.threads=2"], {}),
    ("`strategy.chunks=16`", ["strategy.chunks=16"], {}),
    ("`strategy.reduction=fast`", ["strategy.reduction=fast"], {}),
    ("torch as on a CPU without AVX2 (`ATEN_CPU_CAPABILITY=default`)", [], {"ATEN_CPU_CAPABILITY": "default"}),
)

TEXT = """\
# The same answer on any number of processes

Written by `make exactness` (`python docs/exactness.py`), which takes about ten minutes on two cores, runs everything below
again, and answers 1 if a promise is not kept. How to start several processes: [scaling.md](scaling.md). What it costs:
[performance.md](performance.md#several-processes).

Measured with {machine}, gloo, one thread a process. GPUs were not measured.

The experiment is `diabetes`, 442 patients, with a network 10-16-12-1: 321 rows train in shuffled batches of 20, so that every
17th batch has a single row and leaves all processes but one without any; on three processes a batch of 20 is 7, 7 and 6
rows. 200 steps, gradients clipped at norm 0.5, lr 0.01, weight decay 0.01.

## `strategy.reduction=fast`, the default

**Promised:** the *answer* does not depend on N: every loss, gradient and metric is weighted by the rows of the whole batch, and
no row is dropped, repeated or padded. In float64 and without dropout, parameters agree with those of one process up to
rounding: 1e-12 for sgd and momentum, 1e-10 for the adaptive rules, whose division by a small root makes more of a last
bit; metrics to 1e-12. In float32 rounding is 5e8 times larger, and training may multiply it.

Largest difference over largest magnitude, per tensor, the largest of all parameters, against one process with the same
update; the last column is the largest relative difference of any metric (loss, rmse, mae, r2 of train, valid, test) under any
of the eight updates. float64, no dropout.

{fast}

## `strategy.reduction=exact`

**Promised:** the *bits* do not depend on N: `parameters_sha256` is equal on every number of processes that divides
`strategy.chunks`, with shuffling, a smaller last batch, clipping and dropout. Here with dropout 0.2, eight chunks and 100 steps; the
first eight digits of each hash.

{exact}

**How.** Floating point addition is not associative: a sum depends on its order, and an all-reduce over four processes adds in
another order than one over two. So `exact` takes the order away from the number of processes:

* Every batch is cut into `strategy.chunks` chunks, whoever computes them. Some are empty when there are few rows.
* The gradients of a chunk are computed alone, by the process that owns it, with random numbers whose address is (seed, step, chunk).
* They are added in a binary tree over the chunks: of neighbours, then of neighbouring sums. A process owns an aligned
  subtree, adds that by itself and sends one vector. These are gathered, not reduced, and every process adds the top of the tree.

With one process the whole tree is its own; nothing else is different, so any N that divides the chunks gives the same sums.
Clipping, the update and the loss see only what comes out of the tree. Evaluation is cut and added in the same way.
The same holds when a run is stopped and [resumed on another number of processes](scaling.md#on-another-number-of-processes).

The idea that the training procedure can be taken apart from the resources it runs on is that of EasyScale (Li et al., *EasyScale:
Elastic Training with Consistent Accuracy and Improved Utilization on GPUs*, SC '23), which also keeps the bits of a job whose
number of GPUs changes.

## What else moves bits

The same hash needs the same program on the same kind of machine. adamw by `torch.optim`, `exact`, one process:

{changes}

* **Threads.** One a process unless `device.threads` says otherwise; the number is in `run.json`. What two threads do depends on
  the sizes: torch and the linear algebra below it split large operations, and promise nothing about the order of sums.
* **The kind of CPU or GPU, and torch's version.** They choose other kernels, with vectors of other widths. `run.json` has both;
  all processes of one run must have the same version and kind of device, or the run is refused.
* **Where the numbers lie in memory.** {alignment}
  Every process therefore computes a chunk from an allocation, or a place in the data, that does not depend on N.
* **The number of chunks** is a part of the experiment, as the batch size is, and therefore of `config_hash`. `exact` and `fast`
  differ even on one process, for the same reason.

## What is refused in `exact`

Each with one sentence, before anything is written.

| | why |
| --- | --- |
| `dp`, `fsdp`, `tensor`, `pipeline` | torch adds in them, in an order that depends on N |
| a number of processes that does not divide the chunks | a process would own no whole subtree |
| chunks that are not a power of two | not a full binary tree |
| batch normalisation | a chunk's gradient would depend on which rows it sees together |
| `train.compile=true` | code is compiled for shapes that one process sees, and may round differently from another's |

## Every way to compute an experiment

`python -m runner parity +experiment=NAME` trains the same experiment for every dtype, strategy, update and optimizer, on every device of the
machine, and holds each of these cells against float64 on one process of the CPU with the update written by hand (by the library where
there is none by hand, as for lbfgs). What is compared are the parameters and the losses of all steps; the largest difference over the
largest magnitude of a tensor must be within a bound that is derived or measured beforehand, never fitted to what came out:

{bounds}

Exit 1 says that a bound is missed. `parity.md`, `parity.json` and `parity.png` also have the losses, the time a step, and the command that
computes each cell alone. `device=`, `dtype=`, `strategy=`, `update=` and `optimizer=` restrict the table, as in `dtype=float64 strategy=single,ddp`.

### `linreg`

{linreg}

### `curve_fit`

{curve_fit}

### `mlp`

{mlp}
"""


def cases(size: int) -> Iterator[tuple[str, list[str]]]:
    """What is run on so many processes: a name, and the words of the command line."""
    for optimizer, update in RULES:
        rule = [f"optimizer={optimizer}", f"update={update}"]
        if size in EXACT_SIZES:
            for dtype in DTYPES:
                yield f"exact {dtype} {optimizer} {update}", [*rule, f"dtype={dtype}", *EXACT]
        if size == 1:
            yield f"single {optimizer} {update}", [*rule, *FAST]
        for strategy, (sizes, words) in STRATEGIES.items():
            if size in sizes:
                yield f"{strategy} {optimizer} {update}", [*rule, *FAST, *words]


def work(size: int, file: Path) -> None:
    """One of `size` processes: all their runs. The first process writes down what came out: name → summary."""
    import runner

    summaries = {name: runner.run(None, [*EXPERIMENT, *words]).summary for name, words in cases(size)}
    if os.environ.get("RANK", "0") == "0":
        file.write_text(json.dumps(summaries), encoding="utf-8")


def measure(folder: Path) -> dict[int, dict[str, Any]]:
    """Number of processes → name of the run → its summary."""
    measured = {}
    for size in SIZES:
        sys.stderr.write(f"{size} process{'es' if size > 1 else ''}, {len(list(cases(size)))} runs …\n")
        file = folder / f"{size}.json"
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"] if size > 1 else []
        _run([*start, str(Path(__file__).resolve()), str(size), str(file)], folder, {})
        measured[size] = json.loads(file.read_text(encoding="utf-8"))
    return measured


def fast(measured: Mapping[int, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """The table of relative differences, and what missed its bar."""
    rows = ["| strategy | N | " + " | ".join(f"{o}, {u}" for o, u in RULES) + " | metrics |"]
    rows += ["| --- | ---: |" + " ---: |" * (len(RULES) + 1)]
    missed = []
    for strategy, (sizes, _) in STRATEGIES.items():
        for size in sizes:
            found, metrics = [], 0.0
            for optimizer, update in RULES:
                one = measured[1][f"single {optimizer} {update}"]
                many = measured[size][f"{strategy} {optimizer} {update}"]
                found.append(difference(many["parameters"], one["parameters"]))
                metrics = max(
                    metrics, *(difference({"": many["metrics"][k]}, {"": v}) for k, v in one["metrics"].items())
                )
                if not found[-1] <= BARS[optimizer]:
                    missed.append(f"{strategy}, N = {size}, {optimizer}, {update}: {found[-1]:.0e}")
            if not metrics <= METRICS_BAR:
                missed.append(f"{strategy}, N = {size}, metrics: {metrics:.0e}")
            rows.append(f"| {strategy} | {size} | " + " | ".join(f"{x:.0e}" for x in [*found, metrics]) + " |")
    return rows, missed


def exact(measured: Mapping[int, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """The table of hashes, and those that are not equal."""
    rows = ["| update | dtype | " + " | ".join(f"N = {size}" for size in EXACT_SIZES) + " | |"]
    rows += ["| --- | --- |" + " --- |" * len(EXACT_SIZES) + " --- |"]
    missed = []
    for (optimizer, update), dtype in product(RULES, DTYPES):
        name = f"exact {dtype} {optimizer} {update}"
        hashes = [measured[size][name]["parameters_sha256"] for size in EXACT_SIZES]
        equal = len(set(hashes)) == 1
        missed += [] if equal else [f"{name}: {hashes}"]
        shown = " | ".join(f"`{found[:8]}`" for found in hashes)
        rows.append(f"| {optimizer}, {update} | {dtype} | {shown} | {'equal' if equal else '**not equal**'} |")
    return rows, missed


def changes(folder: Path, measured: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """The table of what changes the hash on one process."""
    rows = ["| changed | float32 | float64 |", "| --- | --- | --- |"]
    for number, (name, words, environment) in enumerate(CHANGES):
        shown = []
        for dtype in DTYPES:
            directory = folder / f"change_{number}_{dtype}"
            rule = ["optimizer=adamw", "update=optimizer", f"dtype={dtype}"]
            _run(["-m", "runner", *EXPERIMENT, *rule, *EXACT, *words, f"run_dir={directory}"], folder, environment)
            found = json.loads((directory / "summary.json").read_text(encoding="utf-8"))["parameters_sha256"]
            same = found == measured[1][f"exact {dtype} adamw optimizer"]["parameters_sha256"]
            shown.append(f"`{found[:8]}`, {'the same' if same else 'another'}")
        rows.append(f"| {name} | {' | '.join(shown)} |")
    return rows


def parity(folder: Path, experiment: str) -> tuple[list[str], list[str]]:
    """The table of an experiment in every way that a CPU can compute it, and what missed its bound."""
    sys.stderr.write(f"parity of {experiment} …\n")
    words = ["-m", "runner", "parity", f"+experiment={experiment}", "device=cpu", "--out", experiment]
    _run(words, folder, {}, answers=(0, 1))
    text = (folder / experiment / "parity.md").read_text(encoding="utf-8")
    found = json.loads((folder / experiment / "parity.json").read_text(encoding="utf-8"))
    bad = [
        f"parity of {experiment}: {cell['command']}"
        for cell in found["cells"]
        if cell["verdict"] in ("missed", "failed")
    ]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found["counts"].items())
    grid = text.partition("## Parameters\n\n")[2].partition("\n## ")[0].splitlines()
    return [
        f"{found['steps']} steps, {found['processes']} processes where there are several: {counts}.",
        "",
        *grid,
    ], bad


def difference(some: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """Largest difference over largest magnitude of each tensor, the largest of all."""
    import torch

    pairs = [
        (torch.tensor(some[k], dtype=torch.float64), torch.tensor(v, dtype=torch.float64)) for k, v in reference.items()
    ]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def alignment() -> str:
    """What a product does when its rows lie elsewhere, in a sentence."""
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 10, dtype=torch.float64, generator=generator)
    rows = torch.randn(8, 10, dtype=torch.float64, generator=generator)
    moved = torch.empty(81, dtype=torch.float64)[1:].view(8, 10).copy_(rows)
    product_of = torch.nn.functional.linear
    other = int((product_of(rows, weight) != product_of(moved, weight)).sum())
    return (
        f"A float64 product of 8 × 10 rows with 10 × 32 weights: {other} of its 256 numbers change when the rows start "
        "8 bytes later."
    )


def page(machine: str, tables: Mapping[str, Sequence[str]]) -> str:
    """The whole page."""
    return TEXT.format(machine=machine, **{name: "\n".join(lines) for name, lines in tables.items()})


def _run(arguments: Sequence[str], folder: Path, environment: Mapping[str, str], answers: Sequence[int] = (0,)) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    if done.returncode not in answers:
        raise SystemExit(f"{' '.join(arguments)} answered {done.returncode}\n{done.stderr[-3000:]}")


def main() -> int:
    """Measure, write the page, and say what missed its bar."""
    import torch

    from runner.commands.parity.bounds import REASONS
    from runner.compute.devices import probe

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        measured = measure(Path(name))
        differences, missed = fast(measured)
        hashes, unequal = exact(measured)
        moved = changes(Path(name), measured)
        cells = {experiment: parity(Path(name), experiment) for experiment in PARITY}
    bounds = [f"* **{kind}**: {reason}." for kind, reason in REASONS.items()]
    tables = {"fast": differences, "exact": hashes, "changes": moved, "alignment": [alignment()], "bounds": bounds}
    tables |= {experiment: grid for experiment, (grid, _) in cells.items()}
    missed += [text for _, bad in cells.values() for text in bad]
    machine = f"torch {torch.__version__} on {probe().cpu_name}"
    PAGE.write_text(page(machine, tables), encoding="utf-8")
    for text in missed + unequal:
        sys.stderr.write(f"missed: {text}\n")
    return 1 if missed or unequal else 0


if __name__ == "__main__":
    if len(sys.argv) == 3:
        work(int(sys.argv[1]), Path(sys.argv[2]))
    else:
        raise SystemExit(main())
