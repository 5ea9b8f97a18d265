"""Measure how far the answer depends on how it is computed, and write docs/exactness.md: `python docs/exactness.py`.

Every run is a real one through `runner.run`, on one process or under torchrun with gloo on the CPU. Runs on the same number
of processes share the processes. Exit code 1 means that a promise is not kept; the page is written in any case.
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
"""321 training rows: an epoch has sixteen batches of 20 rows and one of a single row, which leaves other processes without rows."""

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
"""Experiments that are computed in every way that a CPU supports."""

CHANGES: tuple[tuple[str, list[str], dict[str, str]], ...] = (
    ("nothing, another process", [], {}),
    ("`device.threads=2`", ["device.threads=2"], {}),
    ("`strategy.chunks=16`", ["strategy.chunks=16"], {}),
    ("`strategy.reduction=fast`", ["strategy.reduction=fast"], {}),
    ("torch as on a CPU without AVX2 (`ATEN_CPU_CAPABILITY=default`)", [], {"ATEN_CPU_CAPABILITY": "default"}),
)

TEXT = """\
# The same answer on any number of processes

Written by `make exactness` (`python docs/exactness.py`). It takes about ten minutes on two cores, repeats everything below and
exits with 1 if a promise is not kept. How to start several processes: [scaling.md](scaling.md). What it costs:
[performance.md](performance.md#several-processes).

Measured with {machine}, gloo, one thread per process. GPUs were not measured.

The experiment is `diabetes`, 442 patients, with a network 10-16-12-1. The 321 training rows are shuffled into batches of 20, so
every 17th batch has a single row, which leaves all processes but one without rows. On three processes a batch of 20 is split into
7, 7 and 6 rows. 200 steps, gradients clipped at norm 0.5, lr 0.01, weight decay 0.01.

## `strategy.reduction=fast`, the default

**Promised:** the *answer* does not depend on N, the number of processes. Every loss, gradient and metric is weighted by the rows of
the whole batch, and no row is dropped, repeated or padded. In float64 and without dropout, the parameters agree with those of one
process up to rounding: 1e-12 for sgd and momentum, 1e-10 for the adaptive rules, which divide by a small root and so amplify the
last bit. Metrics agree to 1e-12. In float32 rounding is 5e8 times larger, and training may amplify it.

The table shows the largest difference in a tensor relative to its largest magnitude, compared with one process and the same
update; the largest over all parameters is shown. The last column is the largest relative difference of any metric (loss, rmse, mae,
r2 of train, valid, test) over the eight updates. float64, no dropout.

{fast}

## `strategy.reduction=exact`

**Promised:** the *bits* do not depend on N: `parameters_sha256` is equal on every number of processes that divides
`strategy.chunks`, with shuffling, a smaller last batch, clipping and dropout. The table has the first eight digits of each hash,
with dropout 0.2, eight chunks and 100 steps.

{exact}

**How.** Floating-point addition is not associative: a sum depends on its order, and an all-reduce over four processes adds in
another order than one over two. With `exact` the order does not depend on the number of processes:

* Every batch is cut into `strategy.chunks` chunks, whichever processes compute them. Some are empty if there are few rows.
* The gradient of a chunk is computed separately by the process that owns it. Its random numbers are addressed by (seed, step, chunk).
* The gradients are added in a binary tree over the chunks: first of neighbours, then of neighbouring sums. A process owns an
  aligned subtree, adds it locally and sends one vector. The vectors are gathered, not reduced, and every process adds the top of the
  tree.

One process owns the whole tree and nothing else changes, so any N that divides the chunks gives the same sums. Clipping, the update
and the loss use only the sums from the tree. Evaluation is cut and added in the same way. The same holds if a run is stopped and
[resumed on another number of processes](scaling.md#on-another-number-of-processes).

The idea of separating the training procedure from its resources is that of EasyScale (Li et al., *EasyScale: Elastic Training with
Consistent Accuracy and Improved Utilization on GPUs*, SC '23), which also keeps the bits of a job when its number of GPUs changes.

## What else moves bits

The same hash needs the same program on the same kind of machine. The table is for adamw by `torch.optim` with `exact` on one process:

{changes}

* **Threads.** One per process unless `device.threads` is set; the number is in `run.json`. Whether two threads change the bits depends
  on the sizes: torch and its linear algebra library split large operations and do not promise an order of sums.
* **The kind of CPU or GPU, and torch's version.** They select other kernels, with vectors of other widths. `run.json` has both.
  A run whose processes have different versions or kinds of device is refused.
* **The position of the data in memory.** {alignment}
  Every process therefore computes a chunk from an allocation, or a place in the data, that does not depend on N.
* **The number of chunks.** Like the batch size it is part of the experiment, and therefore of `config_hash`. `exact` and `fast`
  differ even on one process, for the same reason.

## What is refused in `exact`

Each is refused with one sentence before anything is written.

| | why |
| --- | --- |
| `dp`, `fsdp`, `tensor`, `pipeline` | torch does the sums in them, in an order that depends on N |
| a number of processes that does not divide the chunks | some processes would not own a whole subtree |
| chunks that are not a power of two | not a full binary tree |
| batch normalization | the gradient of a chunk would depend on which rows are computed together |
| `train.compile=true` | code is compiled for the shapes that one process sees, and may round differently on another |

## Every way to compute an experiment

`python -m runner parity +experiment=NAME` trains the same experiment for every dtype, strategy, update and optimizer, on every device of the
machine. It compares each of these cells with float64 on one process of the CPU and the manual update (torch.optim for rules without
one, such as lbfgs). It compares the parameters and the losses of all steps. The largest difference relative to the largest magnitude of
a tensor must be within a bound. Bounds are derived or measured beforehand, never fitted to the results:

{bounds}

Exit code 1 means that a bound is missed. `parity.md`, `parity.json` and `parity.png` also have the losses, the time per step, and the command
that computes each cell by itself. `device=`, `dtype=`, `strategy=`, `update=` and `optimizer=` restrict the table, as in `dtype=float64 strategy=single,ddp`.

### `linreg`

{linreg}

### `curve_fit`

{curve_fit}

### `mlp`

{mlp}
"""


def cases(size: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the overrides of each run on `size` processes."""
    for optimizer, update in RULES:
        rule = [f"optimizer={optimizer}", f"update={update}"]
        if size in EXACT_SIZES:
            for dtype in DTYPES:
                yield f"exact {dtype} {optimizer} {update}", [*rule, f"dtype={dtype}", *EXACT]
        if size == 1:
            yield f"single {optimizer} {update}", [*rule, *FAST]
        for strategy, (sizes, overrides) in STRATEGIES.items():
            if size in sizes:
                yield f"{strategy} {optimizer} {update}", [*rule, *FAST, *overrides]


def work(size: int, file: Path) -> None:
    """Do all runs on `size` processes as one of them; the first process writes name -> summary to `file`."""
    import runner

    summaries = {name: runner.run(None, [*EXPERIMENT, *overrides]).summary for name, overrides in cases(size)}
    if os.environ.get("RANK", "0") == "0":
        file.write_text(json.dumps(summaries), encoding="utf-8")


def measure(folder: Path) -> dict[int, dict[str, Any]]:
    """Do all runs and return number of processes -> name of the run -> its summary."""
    measured = {}
    for size in SIZES:
        sys.stderr.write(f"{size} process{'es' if size > 1 else ''}, {len(list(cases(size)))} runs …\n")
        file = folder / f"{size}.json"
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"] if size > 1 else []
        _run([*start, str(Path(__file__).resolve()), str(size), str(file)], folder, {})
        measured[size] = json.loads(file.read_text(encoding="utf-8"))
    return measured


def fast(measured: Mapping[int, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the table of relative differences, and the entries that missed their bar."""
    rows = ["| strategy | N | " + " | ".join(f"{o}, {u}" for o, u in RULES) + " | metrics |"]
    rows += ["| --- | ---: |" + " ---: |" * (len(RULES) + 1)]
    missed = []
    for strategy, (sizes, _) in STRATEGIES.items():
        for size in sizes:
            differences, metrics = [], 0.0
            for optimizer, update in RULES:
                one = measured[1][f"single {optimizer} {update}"]
                many = measured[size][f"{strategy} {optimizer} {update}"]
                differences.append(difference(many["parameters"], one["parameters"]))
                metrics = max(
                    metrics, *(difference({"": many["metrics"][k]}, {"": v}) for k, v in one["metrics"].items())
                )
                if not differences[-1] <= BARS[optimizer]:
                    missed.append(f"{strategy}, N = {size}, {optimizer}, {update}: {differences[-1]:.0e}")
            if not metrics <= METRICS_BAR:
                missed.append(f"{strategy}, N = {size}, metrics: {metrics:.0e}")
            rows.append(f"| {strategy} | {size} | " + " | ".join(f"{x:.0e}" for x in [*differences, metrics]) + " |")
    return rows, missed


def exact(measured: Mapping[int, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the table of hashes, and those that are not equal."""
    rows = ["| update | dtype | " + " | ".join(f"N = {size}" for size in EXACT_SIZES) + " | |"]
    rows += ["| --- | --- |" + " --- |" * len(EXACT_SIZES) + " --- |"]
    missed = []
    for (optimizer, update), dtype in product(RULES, DTYPES):
        name = f"exact {dtype} {optimizer} {update}"
        hashes = [measured[size][name]["parameters_sha256"] for size in EXACT_SIZES]
        equal = len(set(hashes)) == 1
        missed += [] if equal else [f"{name}: {hashes}"]
        shown = " | ".join(f"`{sha256[:8]}`" for sha256 in hashes)
        rows.append(f"| {optimizer}, {update} | {dtype} | {shown} | {'equal' if equal else '**not equal**'} |")
    return rows, missed


def changes(folder: Path, measured: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Return the table of what changes the hash on one process."""
    rows = ["| changed | float32 | float64 |", "| --- | --- | --- |"]
    for number, (name, overrides, environment) in enumerate(CHANGES):
        shown = []
        for dtype in DTYPES:
            directory = folder / f"change_{number}_{dtype}"
            rule = ["optimizer=adamw", "update=optimizer", f"dtype={dtype}"]
            _run(["-m", "runner", *EXPERIMENT, *rule, *EXACT, *overrides, f"run_dir={directory}"], folder, environment)
            sha256 = json.loads((directory / "summary.json").read_text(encoding="utf-8"))["parameters_sha256"]
            same = sha256 == measured[1][f"exact {dtype} adamw optimizer"]["parameters_sha256"]
            shown.append(f"`{sha256[:8]}`, {'the same' if same else 'another'}")
        rows.append(f"| {name} | {' | '.join(shown)} |")
    return rows


def parity(folder: Path, experiment: str) -> tuple[list[str], list[str]]:
    """Return the parity table of an experiment on the CPU, and the cells that missed their bound or failed."""
    sys.stderr.write(f"parity of {experiment} …\n")
    arguments = ["-m", "runner", "parity", f"+experiment={experiment}", "device=cpu", "--out", experiment]
    _run(arguments, folder, {}, answers=(0, 1))
    text = (folder / experiment / "parity.md").read_text(encoding="utf-8")
    table = json.loads((folder / experiment / "parity.json").read_text(encoding="utf-8"))
    bad = [
        f"parity of {experiment}: {cell['command']}"
        for cell in table["cells"]
        if cell["verdict"] in ("missed", "failed")
    ]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in table["counts"].items())
    grid = text.partition("## Parameters\n\n")[2].partition("\n## ")[0].splitlines()
    return [
        f"{table['steps']} steps; strategies of several processes use {table['processes']}: {counts}.",
        "",
        *grid,
    ], bad


def difference(some: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """Return the largest difference relative to the largest magnitude of its tensor."""
    import torch

    pairs = [
        (torch.tensor(some[k], dtype=torch.float64), torch.tensor(v, dtype=torch.float64)) for k, v in reference.items()
    ]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def alignment() -> str:
    """Return a sentence on how a product changes with the position of its rows in memory."""
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
    """Return the whole page."""
    return TEXT.format(machine=machine, **{name: "\n".join(lines) for name, lines in tables.items()})


def _run(arguments: Sequence[str], folder: Path, environment: Mapping[str, str], answers: Sequence[int] = (0,)) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    if done.returncode not in answers:
        raise SystemExit(f"{' '.join(arguments)} exited with {done.returncode}\n{done.stderr[-3000:]}")


def main() -> int:
    """Measure, write the page and print what missed its bar; return the exit code."""
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
