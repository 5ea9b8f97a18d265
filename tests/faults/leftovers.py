"""What a run or a sweep leaves, without its times: that of a disturbed one must equal that of an undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from runner.runs import checkpoint
from runner.runs.sinks.jsonl import read_rows

OWN = {"started", "ended", "resumed", "pid", "command", "overrides", "run_dir", "lanes", "config_dir", "words"}
"""Entries that say when and how a run was started, and how often."""
TIMES = {"samples_per_second", "timing", "seconds"}


def without(values: Any, left_out: set[str]) -> Any:
    return {name: value for name, value in values.items() if name not in left_out}


def events(directory: Path) -> list[tuple[int, str, bytes]]:
    """Return step, tag and content of every value in the event files, in the order of steps and tags."""
    found = []
    for file in sorted(directory.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                timed = value.tag in TIMES or value.tag.startswith("_hparams_/session") or value.tag == "config"
                found.append((event.step, value.tag, b"" if timed else value.SerializeToString()))
    return sorted(found)


def left_by_run(directory: Path) -> dict[str, Any]:
    """Return everything that a run has left, without its times."""
    loaded = checkpoint.load(directory / "checkpoints")
    assert loaded is not None
    plots = sorted((directory / "plots").iterdir()) if (directory / "plots").is_dir() else []
    names = {"events" if path.name.startswith("events.") else path.name for path in directory.iterdir()}
    return {
        "names": names,
        "checkpoints": sorted(path.name for path in (directory / "checkpoints").iterdir()),
        "state": {name: value.tolist() for name, value in loaded.state["model"].items()},
        "rows": [without(row, TIMES) for row in read_rows(directory / "metrics.jsonl")],
        "hashes": (directory / "hashes.jsonl").read_bytes(),
        "summary": without(json.loads((directory / "summary.json").read_text()), TIMES),
        "record": without(json.loads((directory / "run.json").read_text()), OWN),
        "ended": json.loads((directory / "run.json").read_text())["ended"] is not None,
        "plots": {path.name: path.read_bytes() for path in plots},
        "events": events(directory),
    }


def left_by_sweep(directory: Path) -> dict[str, Any]:
    """Return everything that a sweep has left, without its times."""
    members = sorted(path.parent for path in directory.glob("*/run.json"))
    rows = [line.split(",") for line in (directory / "results.csv").read_text().splitlines()]
    timed = rows[0].index("seconds")
    return {
        "names": {path.name for path in directory.iterdir()},
        "results": [row[:timed] + row[timed + 1 :] for row in rows],
        "manifest": without(json.loads((directory / "sweep.json").read_text()), OWN),
        "plots": {path.name: path.read_bytes() for path in sorted((directory / "plots").iterdir())},
        **{member.name: left_by_run(member) for member in members},
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return the names of what differs, at any depth."""
    names: list[str] = []
    for name in {**found, **expected}:
        one, two = found.get(name), expected.get(name)
        if isinstance(one, dict) and isinstance(two, dict):
            names += [f"{name}: {inner}" for inner in differences(one, two)]
        elif one != two:
            names.append(f"{name}: {one} instead of {two}"[:500])
    return names
