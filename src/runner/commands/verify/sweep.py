"""`verify sweep SWEEP`: members of a sweep, trained alone, end where they ended in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.commands.arguments import Parser
from runner.commands.diverge.runs import Recorded, read
from runner.commands.verify.rerun import again
from runner.commands.verify.verdict import Verdict, say
from runner.errors import CheckpointError, ConfigError
from runner.sweep.audit import difference, draw_finished
from runner.sweep.manifest import FILE, Manifest

BOUNDS = {"float64": 5e-14, "float32": 1.5e-5}
"""Largest difference over largest magnitude of a tensor, of a member that was trained side by side with others."""

REASON = (
    "side by side, sums over a batch are rounded in another order than alone, and every step carries the difference on: "
    "the bounds, one to two hundred units in the last place, are above all that was measured over some hundred steps"
)


def sweep(words: Sequence[str], folder: Path) -> Verdict:
    """Train some members of a sweep alone."""
    parser = Parser("verify sweep")
    parser.add_argument("sweep", metavar="SWEEP")
    parser.add_argument("--members", type=int, default=3)
    given = parser.parse_args(words)
    chosen = _chosen(Path(given.sweep), given.members)
    differing = None
    say(f"{'member':<8} {'in the sweep':<24} {'difference alone':>16}  bound")
    for member in chosen:
        alone = again(member, folder)
        found, bound = difference(alone.path, member.path), _bound(member)
        beside = f"side by side with {member.record['lanes'] - 1}" if bound else "trained alone"
        told = f"{bound:g} in {member.config['dtype']}" if bound else "equal bits"
        say(f"{member.path.name:<8} {beside:<24} {found:>16.2g}  {told}")
        if not found <= bound or (not bound and _hash(alone) != _hash(member)):
            differing = differing or (member.path, alone.path)
    if any(map(_bound, chosen)):
        say(REASON)
    if differing is None:
        return Verdict(
            True, f"{len(chosen)} of {len(chosen)} members of {given.sweep} end alone where they ended in it"
        )
    return Verdict(
        False, f"member {differing[0].name} of {given.sweep} does not end alone where it ended in it", differing
    )


def _chosen(directory: Path, count: int) -> list[Recorded]:
    """Members that have finished. Raises `InputError` where there are none to train again, or none that can be judged."""
    if count < 1:
        raise ConfigError(f"`--members` must be at least 1, but is {count}; give another number")
    if not (directory / FILE).is_file():
        raise CheckpointError(f"`SWEEP` must be a sweep directory, but {str(directory)!r} has no {FILE}; mend the path")
    manifest = Manifest.read(directory)
    members = [read(str(manifest.member_directory(number)), "SWEEP") for number in draw_finished(manifest, count)]
    if not members:
        raise CheckpointError(
            f"`SWEEP` must have members that have finished, but {directory} has none; go on with it first"
        )
    dtype = next(
        (m.config["dtype"] for m in members if m.record["lanes"] > 1 and m.config["dtype"] not in BOUNDS), None
    )
    if dtype is not None:
        raise ConfigError(
            f"`dtype` must be {' or '.join(BOUNDS)}, for which there is a bound, but members of {directory} that were trained "
            f"side by side have {dtype}; compare them with `diverge`"
        )
    return members


def _bound(member: Recorded) -> float:
    """How far the member may be from itself alone; 0 for one that was trained alone in the sweep, too."""
    return BOUNDS[member.config["dtype"]] if member.record["lanes"] > 1 else 0.0


def _hash(member: Recorded) -> str:
    return str(member.summary["parameters_sha256"])
