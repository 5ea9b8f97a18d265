"""`verify sweep SWEEP`: train members of a sweep alone and compare them with their results in the sweep."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from runner.commands.arguments import Parser
from runner.commands.diverge.runs import RecordedRun, read_run
from runner.commands.verify.rerun import repeat_run
from runner.commands.verify.verdict import Verdict, print_line
from runner.errors import CheckpointError, ConfigError
from runner.runs.records import SWEEP
from runner.sweep.audit import difference, draw_finished
from runner.sweep.manifest import Manifest

BOUNDS = {"float64": 5e-14, "float32": 1.5e-5}
"""dtype -> largest allowed difference of a vmapped member, relative to the largest magnitude of a tensor."""

REASON = (
    "a vmapped run rounds the sums over a batch in another order than a run alone, and every step carries the difference on: "
    "the bounds, one to two hundred units in the last place, are above all measured differences over some hundred steps"
)


def sweep(arguments: Sequence[str], folder: Path) -> Verdict:
    """Train some members of a sweep alone and compare them with their results in the sweep."""
    parser = Parser("verify sweep")
    parser.add_argument("sweep", metavar="SWEEP")
    parser.add_argument("--members", type=int, default=3)
    parsed = parser.parse_args(arguments)
    members = _drawn_members(Path(parsed.sweep), parsed.members)
    differing = None
    print_line(f"{'member':<8} {'in the sweep':<24} {'difference alone':>16}  bound")
    for member in members:
        alone = repeat_run(member, folder)
        largest, bound = difference(alone.path, member.path), _bound(member)
        placement = f"vmapped with {member.record['lanes'] - 1}" if bound else "trained alone"
        required = f"{bound:g} in {member.config['dtype']}" if bound else "equal bits"
        print_line(f"{member.path.name:<8} {placement:<24} {largest:>16.2g}  {required}")
        if not largest <= bound or (not bound and _hash(alone) != _hash(member)):
            differing = differing or (member.path, alone.path)
    if any(map(_bound, members)):
        print_line(REASON)
    if differing is None:
        sentence = f"{len(members)} of {len(members)} members of {parsed.sweep} give the same result alone"
        return Verdict(True, sentence)
    return Verdict(
        False, f"member {differing[0].name} of {parsed.sweep} gives another result alone than in the sweep", differing
    )


def _drawn_members(directory: Path, count: int) -> list[RecordedRun]:
    """Draw finished members. Raises `InputError` if there are none, or if one has a dtype without a bound."""
    if count < 1:
        raise ConfigError(f"`--members` must be at least 1, got {count}; use a larger number")
    if not os.path.isfile(directory / SWEEP):  # Path.is_file raises an error for a name that is too long
        raise CheckpointError(
            f"`SWEEP` must be a sweep directory, got {str(directory)!r}, which has no {SWEEP}; correct the path"
        )
    manifest = Manifest.read(directory)
    members = [read_run(str(manifest.member_directory(number)), "SWEEP") for number in draw_finished(manifest, count)]
    if not members:
        raise CheckpointError(
            f"`SWEEP` must have finished members, got {directory}, which has none; resume the sweep first"
        )
    dtype = next(
        (m.config["dtype"] for m in members if m.record["lanes"] > 1 and m.config["dtype"] not in BOUNDS), None
    )
    if dtype is not None:
        raise ConfigError(
            f"`dtype` of vmapped members must be {' or '.join(BOUNDS)}, for which there is a bound, "
            f"got {dtype} in {directory}; compare them with `diverge`"
        )
    return members


def _bound(member: RecordedRun) -> float:
    """Return the largest allowed difference, which is 0 for a member that was also trained alone in the sweep."""
    return BOUNDS[member.config["dtype"]] if member.record["lanes"] > 1 else 0.0


def _hash(member: RecordedRun) -> str:
    return str(member.summary["parameters_sha256"])
