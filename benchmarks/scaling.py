"""Measure what a second process gains and what exact sums cost: median steps per second on one process and on two.

    python benchmarks/scaling.py [--rounds N]

Every figure is `steps_per_second` of a whole run, with one thread per process: `python -m runner … launch.processes=N`, and a
hand-written training loop with DistributedDataParallel under torchrun. The runs of a round follow each other, and ratios are
taken within a round. A run is repeated, up to a limit, when other programs used too much of the cores. The largest share that
they used during a run that counts is printed below the table. Linux only: it is read from /proc/stat.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

COMMON = [
    "name=mlp", "data=line", "data.rows=50000", "data.features=9", "data.standardize=true", "model=mlp", "model.activation=relu",
    "optimizer=sgd", "optimizer.lr=1e-3", "device=cpu", "device.threads=1", "record.plots=false",
]  # fmt: skip

# The loop that a careful user would write: the same data, network, batches and update, with nothing recorded.
HAND = """
import os, sys, time, torch, torch.distributed as dist
from torch import nn
width, batch, steps = map(int, sys.argv[1:])
torch.set_num_threads(1)
rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
torch.manual_seed(0)
x, y = torch.randn(50_000, 9), torch.randn(50_000, 1)
model = nn.Sequential(nn.Linear(9, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
if size > 1:
    dist.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
per_epoch = 50_000 // batch
began = time.perf_counter()
for step in range(steps):
    k = step % per_epoch
    if k == 0:
        order = torch.randperm(50_000, generator=torch.Generator().manual_seed(step))
    rows = order[k * batch : (k + 1) * batch][rank::size]
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x[rows]), y[rows])
    loss.backward()
    optimizer.step()
loss.item()
if rank == 0:
    print("steps_per_second", steps / (time.perf_counter() - began))
sys.stdout.flush()
os._exit(0)  # the threads of gloo sometimes abort a process that exits normally
"""


@dataclass(frozen=True)
class Network:
    """A network: the width of both hidden layers, the rows of a batch, and the steps of one run."""

    width: int
    batch: int
    steps: int

    def __str__(self) -> str:
        return f"9-{self.width}-{self.width}-1, batch {self.batch:,}"


NETWORKS = (Network(512, 8192, 40), Network(512, 2048, 100), Network(64, 256, 1500))
WAYS = ("fast", "exact", "hand-written")

QUIET = 0.03
"""Largest share of the cores that other programs may use during a run that counts."""

TRIES = 6
"""Most repetitions of a run."""


def runner(network: Network, reduction: str, processes: int, folder: Path) -> float:
    """Return the steps per second of one run, with rows, events and checkpoint."""
    overrides = [
        *COMMON, f"model.widths=[{network.width},{network.width}]", f"train.batch_size={network.batch}",
        f"train.steps={network.steps}", f"record.every_steps={network.steps // 10}", f"strategy.reduction={reduction}",
        f"launch.processes={processes}", f"run_dir={folder / 'run'}",
    ]  # fmt: skip
    _run(["-m", "runner", *overrides])
    summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    return float(summary["timing"]["steps_per_second"])


def by_hand(network: Network, processes: int, folder: Path) -> float:
    """Return the steps per second of the hand-written loop."""
    script = folder / "hand.py"
    script.write_text(HAND, encoding="utf-8")
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    printed = _run([*start, str(script), str(network.width), str(network.batch), str(network.steps)])
    found = re.search(r"steps_per_second ([0-9.]+)", printed)
    assert found is not None, printed
    return float(found[1])


def once(network: Network, way: str, processes: int) -> tuple[float, float]:
    """Return the steps per second on `processes` processes, and the share of the cores that other programs used meanwhile."""
    tries = []
    for _ in range(TRIES):
        began, theirs = time.perf_counter(), taken_by_others()
        with tempfile.TemporaryDirectory() as name:
            if way == "hand-written":
                steps = by_hand(network, processes, Path(name))
            else:
                steps = runner(network, way, processes, Path(name))
        share = (taken_by_others() - theirs) / (time.perf_counter() - began) / (os.cpu_count() or 1)
        tries.append((share, steps))
        if share < QUIET:
            break
    share, steps = min(tries)
    return steps, share


def taken_by_others() -> float:
    """Return the seconds that the cores have worked for other programs, steal time of the host included."""
    ticks = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, ticks[1:9])
    worked = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return worked - sum(usage.ru_utime + usage.ru_stime for usage in ours)


def table(network: Network, rounds: int) -> tuple[list[str], float]:
    """Return the table's rows of one network, and the largest share of the cores that other programs used."""
    measured, others = [], 0.0
    for _ in range(rounds):
        found = {}
        for way, processes in product(WAYS, (1, 2)):
            found[way, processes], share = once(network, way, processes)
            others = max(others, share)
        measured.append(found)
    lines = []
    for way in WAYS:
        one, two = ([found[way, processes] for found in measured] for processes in (1, 2))
        gain = statistics.median(b / a for a, b in zip(one, two, strict=True))
        lines.append(
            f"| {network} | {way} | {statistics.median(one):,.1f} | {statistics.median(two):,.1f} | {gain:.2f} |"
        )
    for name, above, below in (
        ("time of exact : fast", "fast", "exact"),
        ("time of fast : hand-written", "hand-written", "fast"),
    ):
        costs = [statistics.median(found[above, n] / found[below, n] for found in measured) for n in (1, 2)]
        lines.append(f"| {network} | {name} | {costs[0]:.2f} | {costs[1]:.2f} | |")
    return lines, others


def _run(arguments: Sequence[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with exit code {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    rounds = options.parse_args().rounds
    print("| network | | 1 process | 2 processes | 2 : 1 |\n| --- | --- | ---: | ---: | ---: |")
    shares = []
    for network in NETWORKS:
        lines, others = table(network, rounds)
        shares.append(others)
        print("\n".join(lines), flush=True)
    print(f"\nOther programs used at most {max(shares):.0%} of the {os.cpu_count()} cores during any of these runs.")


if __name__ == "__main__":
    main()
