"""The records of two runs held against each other, kind by kind: the steps that both have, and the first that differs.

Equal means equal bits: hashes, numbers that JSON gives back with every bit, tensors byte by byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.commands.diverge.runs import Recorded
from runner.config.schema import hashed

if TYPE_CHECKING:
    from torch import Tensor

SURROUNDINGS = (
    "torch", "python", "device", "device_name", "threads", "world_size", "strategy", "lanes", "git_commit", "git_dirty",
)  # fmt: skip
"""Of run.json what bits may depend on besides the configuration."""

GIVEN = ("lr", "samples_per_second")
"""Of a row what does not come of the training: what was asked for, and the pace."""

MOST_NAMES = 3
"""Names that are told of many."""


@dataclass(frozen=True)
class Evidence:
    """What one kind of record says. `steps` are those that both runs have, up to the first that differs."""

    source: str
    steps: Sequence[int]
    first: int | None = None
    what: str = ""
    """What differs there."""
    parameters: bool = True
    """Whether equal records mean equal parameters."""


@dataclass(frozen=True)
class Difference:
    """A value that two runs do not share."""

    name: str
    one: Any
    other: Any


def asked(one: Recorded, other: Recorded) -> list[Difference]:
    """Keys that the answer depends on."""
    return _differences(_flat(hashed(dict(one.config))), _flat(hashed(dict(other.config))))


def surroundings(one: Recorded, other: Recorded) -> list[Difference]:
    """Program and machine."""
    return _differences(*({name: run.record.get(name) for name in SURROUNDINGS} for run in (one, other)))


def data(one: Recorded, other: Recorded) -> list[Difference]:
    """The SHA-256 of the data, which checkpoints have; nothing where one of the runs has no intact one."""
    from runner.runs import checkpoint

    found = []
    for run in (one, other):
        states = (checkpoint.intact(run.checkpoints[step]) for step in sorted(run.checkpoints, reverse=True))
        found.append(next((state.get("data_sha256") for state in states if isinstance(state, dict)), None))
    first, second = found
    return [Difference("data_sha256", first, second)] if None not in found and first != second else []


def of_hashes(one: Recorded, other: Recorded) -> Evidence:
    """`hashes.jsonl`."""
    steps = sorted(one.hashes.keys() & other.hashes.keys())
    for i, step in enumerate(steps):
        names = [d.name for d in _differences(one.hashes[step], other.hashes[step])]
        if names:
            return Evidence("hashes.jsonl", steps[: i + 1], step, _named(names))
    return Evidence("hashes.jsonl", steps)


def of_rows(one: Recorded, other: Recorded) -> Evidence:
    """`metrics.jsonl`: its values, rows that are there twice, and those that one of two runs lacks that write at the same steps."""
    steps, differs = sorted(one.rows.keys() & other.rows.keys()), dict[int, str]()
    for step in steps:
        found = _row_difference(one.rows[step], other.rows[step])
        if found:
            differs[step] = found
            break
    if all(_cadence(one)[key] == _cadence(other)[key] for key in _cadence(one)):
        # Below the last step of both: a run that ended there has a row there whatever its number.
        both = min(max(one.rows, default=0), max(other.rows, default=0))
        lost = [step for step in one.rows.keys() ^ other.rows.keys() if step < both]
        if lost:
            step = min(lost)
            differs[step] = f"only {'A' if step in one.rows else 'B'} has its row"
    for letter, run in (("A", one), ("B", other)):
        differs |= dict.fromkeys(run.repeated, f"{letter} has its row more than once")
    first = min(differs, default=None)
    before = [step for step in steps if first is None or step <= first]
    return Evidence("metrics.jsonl", before, first, differs.get(first or 0, ""), parameters=False)


def of_checkpoints(one: Recorded, other: Recorded) -> Evidence:
    """Model and optimizer of the checkpoints that both have, as far as they are intact."""
    from runner.runs import checkpoint, checkpoint_shards

    steps = []
    for step in sorted(one.checkpoints.keys() & other.checkpoints.keys()):
        first, second = (checkpoint.intact(run.checkpoints[step]) for run in (one, other))
        if isinstance(first, str) or isinstance(second, str):
            continue
        steps.append(step)
        what = _tensors(checkpoint_shards.split(first)[0], checkpoint_shards.split(second)[0])
        if what:
            return Evidence("checkpoints", steps, step, what)
    return Evidence("checkpoints", steps)


def of_ends(one: Recorded, other: Recorded) -> Evidence:
    """`parameters_sha256` of two runs that have finished at the same step."""
    name = "parameters_sha256"
    if not (one.summary and other.summary) or one.summary["steps"] != other.summary["steps"]:
        return Evidence(name, [])
    step, hashes = int(one.summary["steps"]), [str(run.summary[name]) for run in (one, other)]
    if hashes[0] == hashes[1]:
        return Evidence(name, [step])
    return Evidence(name, [step], step, f"{hashes[0][:12]}… against {hashes[1][:12]}…")


def _cadence(run: Recorded) -> dict[str, Any]:
    return {"record": run.config["record"]["every_steps"], "evaluate": run.config["train"]["eval_every_steps"]}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    names = dict.fromkeys([*one, *other])
    found = [Difference(name, one.get(name, "—"), other.get(name, "—")) for name in names]
    return [d for d in found if d.one != d.other]


def _named(names: Sequence[str]) -> str:
    told = ", ".join(f"`{name}`" for name in names[:MOST_NAMES])
    return told if len(names) <= MOST_NAMES else f"{told} and {len(names) - MOST_NAMES} more tensors"


def _row_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first value that differs."""
    for name in (n for n in one if n in other and n not in GIVEN):
        a, b = one[name], other[name]
        if repr(a) != repr(b):  # so that nan is equal to nan, and 0 not to -0
            relative = abs(a - b) / (max(abs(a), abs(b)) or 1.0)
            apart = f" (relatively {relative:.2g})" if math.isfinite(relative) else ""
            return f"`{name}` is {a!r} against {b!r}{apart}"
    return ""


def _tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str:
    """The first tensor that differs, and by how much."""
    import torch

    for name in sorted(one.keys() ^ other.keys()):
        return f"only {'A' if name in one else 'B'} has `{name}`"
    for name, a in one.items():
        b = other[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            kinds = [f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (a, b)]
            return f"`{name}` is {kinds[0]} against {kinds[1]}"
        if not torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)):
            return f"`{name}` by {apart(a, b)}"
    return ""


def apart(one: Tensor, other: Tensor) -> str:
    """The largest difference of two tensors of one shape and type: absolute, relative, in units in the last place.

    Each is the largest over the elements, relative to the larger one of the two.
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
    return f"{difference.max():.2g} at most (relatively {relative.max():.2g}, {places})"
