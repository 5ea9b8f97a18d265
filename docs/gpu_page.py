"""The page on what was seen on a GPU, from the report that `docs/gpu_report.py` keeps. See there for the report's form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

PARTS = {"tests": "Tests", "bench": "Training", "sweep": "Sweeps"}
"""Part → its heading."""
SHOWN_NAMES = 10
"""Largest number of tests that are named beside the reason why they were skipped."""

HEAD = """\
# What was seen on a GPU

`make gpu` writes this page. On a machine with an NVIDIA or AMD GPU it tries everything that is promised about devices, in nine
minutes and without a network. It needs torch 2.10 or newer, pytest, and the packages of `pyproject.toml`.
"""

NOTHING = """\

**Nothing has run on a GPU yet**, and so this page has no figures. All other pages were measured on CPUs.
"""

HOW = """\

## How to write it

```
make gpu-wheels                # with a network: hydra-core, omegaconf and antlr4-python3-runtime as wheels, in wheels/
make gpu                       # on the machine with the GPU; with .venv, or else with the packages of python3 and wheels/
make gpu PART=bench MINUTES=4  # one part, tests, bench or sweep; the page keeps what the other parts found before
make gpu INTO=FOLDER           # writes both files into a folder, and leaves the page as it is
```

`gpu_report.json` has all that the page has, and each test and figure besides. Both files are written again while a part runs: what
was found stays when the rest fails or is stopped. The exit code is 0 if everything passed, 1 if something failed, missed its bar
or was cut off, and 2 without a GPU; then nothing is written. `python docs/gpu_report.py --rehearse --into FOLDER` tries the
same on a CPU, with tiny sizes: its figures mean nothing.

| part | what it does |
| --- | --- |
| `tests` | `tests/gpu`: the promises about devices, each a test |
| `bench` | `python -m benchmarks.gpu bench`: steps, start-up and memory of a run, against a loop by hand in the same process |
| `sweep` | `python -m benchmarks.gpu sweep`: vmapped sweeps, against the same trials one by one |

The page then has the GPU, its driver and all versions; the number of tests that passed, each failure with its traceback, and each
reason for a skip; every figure with its bar; and what was not run, and why. Bars: with a CUDA graph, a step of `linreg` and of the
network 9-64-64-1 is at least 5 times as fast as by hand. A step of 9-1024-1024-1 takes at most 1.05 times as long. 1,024 trials train
at least 100 times as fast as one by one.
"""

ROWS = {
    "began": "date (UTC)", "command": "command", "seconds": "seconds", "gpu": "GPU", "gpus": "visible GPUs",
    "memory_gib": "memory of the GPU, GiB", "capability": "capability or architecture", "driver": "driver", "torch": "torch",
    "cuda": "CUDA", "hip": "HIP", "cudnn": "cuDNN", "nccl": "NCCL or RCCL", "python": "Python", "system": "system", "cores": "cores",
    "commit": "commit",
}  # fmt: skip
"""Fact → its name in the table."""


def page(report: Mapping[str, Any]) -> str:
    """Return the page of a report."""
    parts = {name: report["parts"][name] for name in PARTS if name in report.get("parts", {})}
    if not parts:
        return HEAD + NOTHING + HOW
    lines = ["", *_machine(parts)]
    for name, heading in PARTS.items():
        lines += ["", f"## {heading}", ""]
        lines += _part(name, parts[name]) if name in parts else ["This part has not run."]
    return HEAD + "\n".join(lines) + "\n" + HOW


def problems(part: Mapping[str, Any]) -> list[str]:
    """Return what makes a part no success: failures, missed bars, and that it was cut off."""
    records = part["records"]
    found = [f"failed: {r['name']}" for r in records if r["kind"] == "failure" or r.get("outcome") == "failed"]
    found += [f"missed its bar: {r['name']}" for r in records if r.get("met") is False]
    return found + ([f"cut off: {part['unfinished']}"] if part["unfinished"] else [])


def _machine(parts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the table of the facts, with a column for each part that ran: parts may have run at different times."""
    columns = [{**part["facts"], **part} for part in parts.values()]
    packages = sorted({name for column in columns for name in column.get("packages", {})}, key=str.lower)
    variables = sorted({name for column in columns for name in column.get("environment", {})})
    yield "| | " + " | ".join(parts) + " |"
    yield "| --- |" + " --- |" * len(parts)
    for key, title in ROWS.items():
        if any(column.get(key) is not None for column in columns):
            yield _row([title, *(column.get(key) for column in columns)])
    for group, names in (("packages", packages), ("environment", variables)):
        for name in names:
            yield _row([f"`{name}`", *(column.get(group, {}).get(name) for column in columns)])


def _part(name: str, part: Mapping[str, Any]) -> Iterator[str]:
    found = problems(part)
    yield f"**Problems: {len(found) or 'none'}.**"
    if part["unfinished"]:
        yield from ("", f"The part was cut off: {part['unfinished']}.")
    yield from _tests(part["records"]) if name == "tests" else _figures(part["records"])
    for record in part["records"]:
        if record["kind"] == "failure" or record.get("outcome") == "failed":
            # Four tildes: a traceback may contain a fence of three.
            yield from ("", f"### Failed: `{record['name']}`", "", "~~~~text", record["detail"].strip(), "~~~~")


def _tests(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the counts of the tests, the reasons of skips, and the tests that did not run."""
    ended = [record for record in records if record["kind"] == "test"]
    counts = Counter(record["outcome"] for record in ended)
    seconds = sum(record["seconds"] for record in ended)
    words = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
    yield from ("", f"{words}; {seconds:.0f} s in tests.")
    yield from _listed(
        "Skipped, with the reason:",
        ((record["detail"], record["name"]) for record in ended if record["outcome"] == "skipped"),
    )
    begun = {record["name"] for record in records if record["kind"] == "started"}
    done = {record["name"] for record in records if record["kind"] in ("test", "failure")}
    collected = {name: None for record in records if record["kind"] == "collected" for name in record["names"]}
    yield from _listed(
        "Not run to the end:",
        (
            (f"the part was cut off {'while it ran' if name in begun else 'before it began'}", name)
            for name in collected
            if name not in done
        ),
    )


def _figures(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the table of the figures, and the cases that were not measured."""
    figures = [record for record in records if record["kind"] == "figure"]
    if figures:
        yield from ("", "| figure | value | | bar | | measured |", "| --- | ---: | --- | --- | --- | --- |")
    for record in figures:
        verdict = {True: "met", False: "**missed**", None: ""}[record["met"]]
        yield _row([record["name"], f"{record['value']:,.4g}", record["unit"], record["bar"], verdict, record["note"]])
    yield from _listed("Not run:", ((r["reason"], r["name"]) for r in records if r["kind"] == "skipped"))


def _listed(title: str, pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield a list of reasons, each with the names that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for reason, name in pairs:
        by_reason.setdefault(reason, []).append(name)
    if by_reason:
        yield from ("", title, "")
    for reason, names in by_reason.items():
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        yield f"* {' '.join(reason.split())} ({', '.join(f'`{name}`' for name in names[:SHOWN_NAMES])}{more})"


def _row(cells: Sequence[Any]) -> str:
    texts = ("" if cell is None else " ".join(str(cell).split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(texts)} |"
