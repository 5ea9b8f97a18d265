"""Sizes beyond this machine: one message, exit code 2, within seconds and without the memory that was asked for.

Each command runs in a process of its own, whose address space and processor time are limited: one that acts on its size
before it looks at it ends in another way.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.compute import sizes
from runner.config.compose import compose

ADDRESS_SPACE = 6 * 2**30  # torch maps some 4 GiB of libraries and reserved space, and needs under 1 GiB of memory
CPU_SECONDS = 20  # a busy machine lets a refused command take five seconds of wall time; this ends one that never ends
QUICK = ["device=cpu", "record.plots=false", "train.steps=2", "optimizer.lr=1e-4"]
CSV = ["data=csv", "data.path=t.csv", "data.target=y"]
HUGE = 10**12


def refused(*arguments: str) -> list[str]:
    """Return the messages of a command, which must be refused and leave nothing."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))

    before = sorted(Path().rglob("*"))
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-m", "runner", *arguments, *QUICK]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment, preexec_fn=limit)  # noqa: PLW1509 - no lock is held by a thread
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        lines = errors.read().decode().splitlines()
    assert (process.returncode, [line for line in lines if not line.startswith("error: ")]) == (2, []), lines[-5:]
    assert usage.ru_maxrss * 1024 < 2**30
    assert sorted(Path().rglob("*")) == before
    return [line.removeprefix("error: ") for line in lines]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sparse(beginning: str, size: int) -> None:
    """Write a file that starts with a text and ends with a hole, which takes no space on the disk."""
    Path("t.csv").write_text(beginning, encoding="utf-8")
    os.truncate("t.csv", size)


def wide(columns: int, cell: str = "1.5") -> None:
    names = ",".join(f"c{i}" for i in range(columns - 1))
    row = ",".join([cell, *["1.5"] * (columns - 1)])
    Path("t.csv").write_text(f"y,{names}\n{row}\n{row}\n", encoding="utf-8")


def experiment(text: str) -> None:
    Path("d/experiment").mkdir(parents=True)
    Path("d/experiment/keys.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")


CASES: dict[str, tuple[list[str], Callable[[], object] | None, list[str]]] = {
    "features": (
        [f"data.features={HUGE}"],
        None,
        ["`data.rows` times `data.features` must fit in memory, got 100 rows of 1,000,000,000,000 features (1,583,248.4 GiB, of which "],
    ),
    "rows": (
        [f"data.rows={HUGE}"],
        None,
        ["`data.rows` times `data.features` must fit in memory, got 1,000,000,000,000 rows of 1 features (29,802.3 GiB, of which "],
    ),
    "rows of a curve": (
        ["data=curve", f"data.rows={HUGE}"],
        None,
        ["`data.rows` must fit in memory, got 1,000,000,000,000 rows of 1 features (29,802.3 GiB, of which "],
    ),
    "rows and features in the trials of a sweep": (
        ["-m", f"data.rows=100,{HUGE}"],
        None,
        ["trial 1: `data.rows` times `data.features` must fit in memory, got 1,000,000,000,000 rows of 1 features (29,802.3 GiB, of which "],
    ),
    "one wide layer": (
        ["model=mlp", f"model.widths=[{HUGE}]"],
        None,
        ["`model.widths` must fit in memory, got 3,000,000,000,001 parameters (44,703.5 GiB, of which "],
    ),
    "two wide layers": (
        ["model=mlp", "model.widths=[100000,100000]"],
        None,
        ["`model.widths` must fit in memory, got 10,000,400,001 parameters (149.0 GiB, of which "],
    ),
    "layers for the columns of a file": (
        [*CSV, "model=mlp", "model.widths=[1000000]"],
        lambda: wide(1001),
        ["`model.widths` must fit in memory, got 1,002,000,001 parameters (14.9 GiB, of which "],
    ),
    "layers": (
        ["model=mlp", f"model.widths=[{','.join(['1'] * 10_000)}]"],
        None,
        ["`model.widths` must have at most 1000 layers, got 10,000; use fewer and wider ones"],
    ),
    "unknown keys of a file": (
        ["--config-dir", "d", "+experiment=keys"],
        lambda: experiment("".join(f"key{i}: 1\n" for i in range(10_000))),
        [*(f"`key{i}` is not a key; see docs/config.md for the list of keys" for i in range(100)), "and 9,900 more problems"],
    ),
    "start values of absent parameters": (
        ["--config-dir", "d", "+experiment=keys", "model=formula"],
        lambda: experiment("model:\n  start:\n" + "".join(f"    q{i:05}: 1\n" for i in range(10_000))),
        [*(f"`model.start.q{i:05}` must name a parameter of `model.expression`='a*x + b', which has a, x, b; " for i in range(100)), "and 9,900 more problems"],
    ),
    "data and model": (
        [f"data.features={HUGE}", "model=mlp", f"model.widths=[{HUGE}]"],
        None,
        [
            "`model.widths` must fit in memory, got 1,000,000,000,002,000,000,000,001 parameters (14,901,161,193,877,",
            "`data.rows` times `data.features` must fit in memory, got 100 rows of 1,000,000,000,000 features (1,583,248.4 GiB, of which ",
        ],
    ),
    "processes": (["launch.processes=100000"], None, ["`launch.processes` must be an integer from 1 to 1024, got 100000"]),
    "hosts": (["launch.nodes=100000"], None, ["`launch.nodes` must be an integer from 1 to 65536, got 100000"]),
    "processes beyond the rows": (
        ["launch.processes=101"],
        None,
        ["the number of processes must not be above the number of rows, 100, got 101; start fewer processes"],
    ),
    "a port that nobody knows": (
        ["launch.processes=2", "launch.rdzv_endpoint=127.0.0.1:0"],
        None,
        ["`launch.rdzv_endpoint` must have a port from 1 to 65535, got 127.0.0.1:0; give a free port of that host"],
    ),
    "trials": (
        ["-m", f"seeds={HUGE}"],
        None,
        ["`sweep.max_trials` must be at least the number of trials (1,000,000,000,000), got 10,000; give fewer values"],
    ),
    "trials of a range": (
        ["-m", "data.slope=range(0,1e15,1)"],
        None,
        ["`sweep.max_trials` must be at least the number of trials (1,000,000,000,000,000), got 10,000; "],
    ),
    "a file beyond memory": (
        CSV,
        lambda: sparse("x,y\n1,2\n", 30 * 2**30),
        ["`data.path` must fit in memory, got 't.csv' of 30.0 GiB (30.0 GiB, of which "],
    ),
    "a Parquet file beyond memory": (
        ["data=parquet", *CSV[1:]],
        lambda: sparse("PAR1", 300 * 2**30),
        ["`data.path` must fit in memory, got 't.csv' of 300.0 GiB (300.0 GiB, of which "],
    ),
    "a hole in a file": (
        CSV,
        lambda: sparse("x,y\n1,2\n", 2**28),
        ["`data.path` must be text, but 't.csv' is UTF-16 or binary; save it as UTF-8"],
    ),
    "columns": (
        CSV,
        lambda: wide(100_000, "abc"),
        ["`data.path`: line 2 of 't.csv', column 'y' (none of its 2 values is usable), must be a finite number, got 'abc', text; "],
    ),
    "a category of 1,000,000 values": (
        [*CSV, "data.categorical=[x]"],
        lambda: Path("t.csv").write_text("x,y\n" + "".join(f"v{i},{i % 7}\n" for i in range(1_000_000)), encoding="utf-8"),
        ["`data.categorical` must fit in memory, got 1,000,000 rows of 1,000,000 columns, one for each category (3,725.3 GiB, of which "],
    ),
    "free text in 1,000,000 rows": (
        CSV,
        lambda: Path("t.csv").write_text("x,y\n" + "".join(f"v{i},{i % 7}\n" for i in range(1_000_000)), encoding="utf-8"),
        ["`data.features`: column 'x' of 't.csv' has 1,000,000 distinct values in 1,000,000 rows, as free text has; add it to `data.drop`, "],
    ),
    "a name among many columns": (
        [*CSV[:2], "data.target=c100001"],
        lambda: wide(100_000),
        ["`data.target` must name a column of 't.csv', got 'c100001'; the columns are 'c100', 'c101', "],
    ),
    "absent names": (
        [*CSV, f"data.features=[{','.join(f'absent{i}' for i in range(10_000))}]"],
        lambda: wide(100),
        [*(f"`data.features` must name a column of 't.csv', got 'absent{i}'; the columns are " for i in range(10)), "and 9,990 more problems in 't.csv'"],
    ),
    "absent names among many columns": (
        [*CSV, f"data.features=[{','.join(f'absent{i}' for i in range(10_000))}]"],
        lambda: wide(100_000),
        [*(f"`data.features` must name a column of 't.csv', got 'absent{i}'; the columns are " for i in range(10)), "and 9,990 more problems in 't.csv'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "prepare", "beginnings"), CASES.values(), ids=CASES.keys())
def test_a_size_beyond_the_machine_is_refused(
    arguments: list[str], prepare: Callable[[], object] | None, beginnings: list[str]
) -> None:
    if prepare is not None:
        prepare()
    problems = refused(*arguments)
    assert [problem[: len(beginning)] for problem, beginning in zip(problems, beginnings, strict=True)] == beginnings


# Not by getrusage: a child inherits the largest memory of the process that it was forked from.
PEAK = """
import re, sys
from runner import cli
code = cli.main(sys.argv[1:])
print(re.search("VmHWM: *([0-9]+)", open("/proc/self/status").read().replace("\t", " "))[1], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["data=line", "data.rows=8000000", "dtype=float32"],
        ["data=line", "data.rows=200000", "data.features=100", "dtype=float64", "data.standardize=true"],
        ["data=line", "data.rows=9", "model=mlp", "model.widths=[5000,5000]", "dtype=float64", "update=manual"],
    ],
)
def test_no_more_is_needed_than_a_run_takes(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(*more: str) -> int:
        command = [sys.executable, "-c", PEAK, *QUICK, "device.threads=1", "optimizer.lr=1e-9", *more]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stderr.split()[-1]) * 1024

    needed = list[int]()
    monkeypatch.setattr(sizes, "unfit", lambda size, *_: needed.append(size))
    sizes.problems(compose([*QUICK, *arguments]).config)
    measured = peak(*arguments) - peak()
    assert 0.4 * measured < max(needed[1:]) < measured


TABLE = """
import torch
import pandas, pyarrow.parquet  # pyarrow imports pandas where it is installed, at its first conversion
from runner.config.compose import compose
from runner.data import dataset
from runner.errors import DataError

def peak():
    status = open("/proc/self/status").read().replace("\t", " ")
    return int(re.search("VmHWM: *([0-9]+)", status)[1]) * 1024

import re, sys
config = compose(sys.argv[1:]).config
before = peak()
try:
    parts = dataset.build(config.data, 0, getattr(torch, config.dtype), torch.device("cpu")).parts.values()
except DataError:
    parts = ()
print(peak() - before, sum(values.nbytes for rows in parts for values in rows.all if values is not None))
"""


@pytest.mark.parametrize(
    "arguments",
    [[], ["data.standardize=true"], pytest.param(["dtype=float64", "data.missing=drop"], marks=pytest.mark.long)],
)
def test_a_table_takes_twice_the_memory_of_its_rows_and_300_mebibytes(arguments: list[str]) -> None:
    random = np.random.default_rng(0)
    columns = {f"x{i}": random.standard_normal(1_500_000) for i in range(20)}
    columns["x0"][::1000] = np.nan
    pq.write_table(pa.table(columns), "t.parquet")
    del columns
    command = [
        "data=parquet",
        "data.path=t.parquet",
        "data.target=x1",
        "data.split.test=0.2",
        "data.missing=mean",
        *arguments,
    ]
    done = subprocess.run([sys.executable, "-c", TABLE, *command], capture_output=True, text=True, check=True)
    measured, resident = map(int, done.stdout.split())
    assert resident > 100 * 2**20
    assert measured < 2 * resident + 300 * 2**20


@pytest.mark.long
def test_many_columns_of_text_take_300_mebibytes_until_they_are_refused() -> None:
    lines = "".join(",".join([f"text {i}"] * 200) + f",{i}\n" for i in range(20_000))
    Path("t.csv").write_text(",".join([*(f"x{i}" for i in range(200)), "y"]) + "\n" + lines)
    command = ["data=csv", "data.path=t.csv", "data.target=y"]
    done = subprocess.run([sys.executable, "-c", TABLE, *command], capture_output=True, text=True, check=True)
    measured, resident = map(int, done.stdout.split())
    assert resident == 0
    assert measured < 300 * 2**20
