"""Comparison of the records of two runs, one kind of record at a time.

Equal means equal bits: equal hashes, equal numbers (JSON keeps every bit of them), equal bytes of tensors.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.commands.diverge.runs import RecordedRun
from runner.config.schema import hashed

if TYPE_CHECKING:
    from torch import Tensor

ENVIRONMENT = (
    "torch", "python", "device", "device_name", "threads", "world_size", "strategy", "lanes", "git_commit", "git_dirty",
)  # fmt: skip
"""Entries of run.json, besides the configuration, that the bits may depend on."""

NOT_COMPARED = ("lr", "samples_per_second")
"""Values of a row that are not results of the training: a setting and the speed."""

MAX_NAMES = 3
"""Number of tensor names listed in one message."""


@dataclass(frozen=True)
class Evidence:
    """Result of comparing one kind of record."""

    source: str
    """Name of the record, such as `hashes.jsonl`."""
    steps: Sequence[int]
    """Steps that both runs have recorded, up to the first that differs."""
    first: int | None = None
    """First step that differs, or None."""
    description: str = ""
    """Description of the difference at the first step that differs."""
    parameters: bool = True
    """Whether equal records mean equal parameters."""


@dataclass(frozen=True)
class Difference:
    """A named value that differs between two runs."""

    name: str
    one: Any
    other: Any


def config_differences(one: RecordedRun, other: RecordedRun) -> list[Difference]:
    """Return the keys that differ, among those that the answer depends on."""
    return _differences(_flat(hashed(dict(one.config))), _flat(hashed(dict(other.config))))


def environment_differences(one: RecordedRun, other: RecordedRun) -> list[Difference]:
    """Return what differs in program and machine."""
    return _differences(*({name: run.record.get(name) for name in ENVIRONMENT} for run in (one, other)))


def data_differences(one: RecordedRun, other: RecordedRun) -> list[Difference]:
    """Return the SHA-256 of the data if it differs.

    It is read from the checkpoints. The result is empty if one of the runs has no intact checkpoint.
    """
    from runner.runs import saved_state

    hashes = []
    for run in (one, other):
        states = (saved_state.intact(run.checkpoints[step]) for step in sorted(run.checkpoints, reverse=True))
        hashes.append(next((state.get("data_sha256") for state in states if isinstance(state, dict)), None))
    first, second = hashes
    return [Difference("data_sha256", first, second)] if None not in hashes and first != second else []


def compare_hashes(one: RecordedRun, other: RecordedRun) -> Evidence:
    """Compare `hashes.jsonl`."""
    steps = array("q")
    for step, a, b in _of_both(one.hashes(), other.hashes()):
        steps.append(step)
        names = [d.name for d in _differences(a["parameters"], b["parameters"])]
        if names:
            return Evidence("hashes.jsonl", steps, step, _named(names))
    return Evidence("hashes.jsonl", steps)


def compare_rows(one: RecordedRun, other: RecordedRun) -> Evidence:
    """Compare `metrics.jsonl`: values, rows written twice, and missing rows.

    A missing row counts only if both runs write rows at the same steps.
    """
    steps, differs = array("q"), dict[int, str]()
    for step, a, b in _of_both(one.rows(), other.rows()):
        steps.append(step)
        description = _row_difference(a, b)
        if description:
            differs[step] = description
            break
    if all(_cadence(one)[key] == _cadence(other)[key] for key in _cadence(one)):
        # Below the last step of both runs only: a run writes a row at its last step whatever the interval.
        end = min(max(one.row_steps, default=0), max(other.row_steps, default=0))
        lost = np.setxor1d(one.row_steps, other.row_steps)
        if len(lost) and lost[0] < end:
            differs[int(lost[0])] = f"only {'A' if lost[0] in one.row_steps else 'B'} has a row"
    for letter, run in (("A", one), ("B", other)):
        found, counts = np.unique(run.row_steps, return_counts=True)
        if (counts > 1).any():
            differs[int(found[counts > 1][0])] = f"{letter} has more than one row"
    first = min(differs, default=None)
    before = steps if first is None else array("q", (step for step in steps if step <= first))
    return Evidence("metrics.jsonl", before, first, differs.get(first or 0, ""), parameters=False)


def _of_both(
    one: Iterator[Mapping[str, Any]], other: Iterator[Mapping[str, Any]]
) -> Iterator[tuple[int, Mapping[str, Any], Mapping[str, Any]]]:
    """Yield the lines of the steps that two files have in common, both in the order of the steps, with one pair in memory."""
    a, b = next(one, None), next(other, None)
    while a is not None and b is not None:
        if a["step"] == b["step"]:
            yield a["step"], a, b
        behind = a["step"] - b["step"]
        a = next(one, None) if behind <= 0 else a
        b = next(other, None) if behind >= 0 else b


def compare_checkpoints(one: RecordedRun, other: RecordedRun) -> Evidence:
    """Compare model and optimizer state in the intact checkpoints of the steps that both runs have."""
    from runner.runs import checkpoint_shards, saved_state

    steps = []
    for step in sorted(one.checkpoints.keys() & other.checkpoints.keys()):
        first, second = (saved_state.intact(run.checkpoints[step]) for run in (one, other))
        if isinstance(first, str) or isinstance(second, str):
            continue
        steps.append(step)
        description = _tensor_difference(checkpoint_shards.split(first)[0], checkpoint_shards.split(second)[0])
        if description:
            return Evidence("checkpoints", steps, step, description)
    return Evidence("checkpoints", steps)


def compare_final_hashes(one: RecordedRun, other: RecordedRun) -> Evidence:
    """Compare `parameters_sha256` if both runs have finished at the same step."""
    name = "parameters_sha256"
    if not (one.summary and other.summary) or one.summary["steps"] != other.summary["steps"]:
        return Evidence(name, [])
    step, hashes = int(one.summary["steps"]), [str(run.summary[name]) for run in (one, other)]
    if hashes[0] == hashes[1]:
        return Evidence(name, [step])
    return Evidence(name, [step], step, f"{hashes[0][:12]}… in A, {hashes[1][:12]}… in B")


def _cadence(run: RecordedRun) -> dict[str, Any]:
    return {"record": run.config["record"]["every_steps"], "evaluate": run.config["train"]["eval_every_steps"]}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    names = dict.fromkeys([*one, *other])
    pairs = [Difference(name, one.get(name, "—"), other.get(name, "—")) for name in names]
    return [pair for pair in pairs if pair.one != pair.other]


def _named(names: Sequence[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in names[:MAX_NAMES])
    return listed if len(names) <= MAX_NAMES else f"{listed} and {len(names) - MAX_NAMES} more tensors"


def _row_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Describe the first value that differs; empty if none does."""
    for name in (n for n in one if n in other and n not in NOT_COMPARED):
        a, b = one[name], other[name]
        if repr(a) != repr(b):  # as text nan equals nan, and 0 does not equal -0
            relative = abs(a - b) / (max(abs(a), abs(b)) or 1.0)
            size = f" (relative difference {relative:.2g})" if math.isfinite(relative) else ""
            return f"`{name}` is {a!r} in A, {b!r} in B{size}"
    return ""


def _tensor_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str:
    """Describe the first tensor that differs and by how much; empty if none does."""
    import torch

    for name in sorted(one.keys() ^ other.keys()):
        return f"only {'A' if name in one else 'B'} has `{name}`"
    for name, a in one.items():
        b = other[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            kinds = [f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (a, b)]
            return f"`{name}` is {kinds[0]} in A, {kinds[1]} in B"
        if not torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)):
            return f"`{name}` by {describe_difference(a, b)}"
    return ""


def describe_difference(one: Tensor, other: Tensor) -> str:
    """Describe the largest difference of two tensors of the same shape and dtype.

    It is given in absolute terms, relative to the larger of the two elements, and in units in the last place.
    Each figure is the largest over all elements.
    """
    import torch

    if not one.is_floating_point():
        return f"{(one.long() - other.long()).abs().max():d}"
    a, b = one.double(), other.double()
    difference, larger = (a - b).abs(), torch.maximum(a.abs(), b.abs())
    limits = torch.finfo(one.dtype)
    unit = torch.ldexp(torch.full_like(larger, limits.eps), torch.frexp(larger).exponent - 1)
    units = difference / unit.clamp_min(limits.smallest_normal * limits.eps)
    relative = torch.where(difference == 0, 0.0, difference / larger)
    places = f"{units.max():.3g} unit{'' if units.max() == 1 else 's'} in the last place"
    return f"at most {difference.max():.2g} (relative difference {relative.max():.2g}, {places})"
