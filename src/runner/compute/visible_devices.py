"""Masks: the variables that say which GPUs a process may see, read as the driver and torch read them.

Nothing here imports torch or reads the environment: every function is given the variables. `hip` says whether torch is
a ROCm build. There, `ROCR_VISIBLE_DEVICES` filters the machine's GPUs first, and `HIP_VISIBLE_DEVICES` (without it
`CUDA_VISIBLE_DEVICES`) counts within what is left. A CUDA build reads `CUDA_VISIBLE_DEVICES` alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from typing import NamedTuple

CUDA = "CUDA_VISIBLE_DEVICES"
HIP = "HIP_VISIBLE_DEVICES"
ROCR = "ROCR_VISIBLE_DEVICES"
VARIABLES = (CUDA, HIP, ROCR)
CONFIGURED = "device.visible"

# An empty text hides every GPU from CUDA, yet ROCm takes it as not set; -1 hides them from both.
HIDE_ALL = "-1"
_UUID = ("GPU-", "MIG-")
_LOOKALIKE = ("CUDA", "HIP", "ROCR", "ROCM", "GPU")


class Obstacle(NamedTuple):
    """Why a device cannot be used: what it needs, what there is instead, and what to do."""

    needs: str
    found: str
    remedy: str


@dataclass(frozen=True)
class Mask:
    """One mask: the variable or key that holds it, what it says, and the words for both."""

    source: str
    value: str
    words: str

    @property
    def removal(self) -> str:
        """How to go without the mask."""
        return f"set {CONFIGURED}=null" if self.source == CONFIGURED else f"unset {self.source}"

    @property
    def entries(self) -> tuple[str, ...]:
        """The ordinals and UUIDs that count, in order; empty hides every GPU."""
        return self._read()[0]

    @property
    def fault(self) -> str | None:
        """What the mask says in vain, as the end of a sentence that starts with it; None where all of it counts."""
        return self._read()[1]

    def _read(self) -> tuple[tuple[str, ...], str | None]:
        """As torch 2.13 reads it: entries from the first invalid one on do not count, and a duplicate hides every GPU.

        ROCR alone mixes ordinals with UUIDs, and a duplicate only ends its list (ROCR-Runtime, amd_filter_device.h).
        """
        kept: list[str] = []
        fault = None
        parts = self.value.split(",")
        for position, part in enumerate(parts):
            entry = self._entry(part)
            if entry in kept and self.source != ROCR:
                return (), f"names GPU {entry} twice, which hides every GPU"
            if entry is None or entry in kept:
                return tuple(kept), fault or _cut(parts[position:], bool(kept))
            if entry.isdecimal() and not part.strip().lstrip("+").isdecimal():
                fault = fault or f"has the entry {part!r}, of which only {entry} can count"
            kept.append(entry)
        return tuple(kept), fault

    def _entry(self, part: str) -> str | None:
        by_uuid = self.value.startswith(_UUID)
        if part.startswith(_UUID) and (by_uuid or self.source == ROCR):
            return part
        number = re.match(r"\+?(\d+)", part.strip())
        return str(int(number[1])) if number and not by_uuid else None


def _cut(rest: Sequence[str], some_kept: bool) -> str | None:
    """The fault of a mask that is read only up to `rest`; "", "-1" and a last comma are no accidents."""
    if [part.strip() for part in rest] in ([HIDE_ALL], [""]):
        return None
    effect = "so that nothing from there on counts" if some_kept else "which hides every GPU"
    return f"has the entry {rest[0]!r} where another ordinal or UUID must stand, {effect}"


def of_variable(name: str, value: str) -> Mask:
    """The mask that an environment variable holds."""
    return Mask(name, value, f"{name}={value!r}")


def of_config(visible: Sequence[int | str]) -> Mask:
    """The mask that `device.visible` asks for."""
    value = ",".join(map(str, visible)) if visible else HIDE_ALL
    return Mask(CONFIGURED, value, f"{CONFIGURED}=[{', '.join(map(str, visible))}]")


def variable(hip: bool) -> str:
    """The variable that carries `device.visible`."""
    return HIP if hip else CUDA


def in_force(visible: Sequence[int | str] | None, environ: Mapping[str, str], hip: bool) -> list[Mask]:
    """The masks that apply, in the order in which they filter; `visible` stands in for the shell's own."""
    first = [of_variable(ROCR, environ[ROCR])] if hip and ROCR in environ else []
    if visible is not None:
        return [*first, of_config(visible)]
    names = [name for name in ((HIP, CUDA) if hip else (CUDA,)) if name in environ]
    return first + [of_variable(name, environ[name]) for name in names[:1]]


def contradiction(masks: Sequence[Mask]) -> str | None:
    """What is wrong between two masks, where the second counts within what the first leaves; None for nothing."""
    beyond = _beyond(masks)
    if not beyond:
        return None
    first, second = masks
    left = len(first.entries)
    gpus = "1 GPU, number 0" if left == 1 else f"{left} GPUs, numbers 0 to {left - 1}"
    effect = "which leaves no GPU" if beyond == second.entries else f"so that {', '.join(beyond)} cannot count"
    return f"{first.words} leaves {gpus}, and {second.words} counts within that, {effect}"


def _beyond(masks: Sequence[Mask]) -> tuple[str, ...]:
    """The second mask's entries from the first on that the first mask does not leave."""
    if len(masks) < 2 or not masks[0].entries:
        return ()
    left, entries = len(masks[0].entries), masks[1].entries
    return tuple(dropwhile(lambda entry: not entry.isdecimal() or int(entry) < left, entries))


def unusable(visible: Sequence[int | str] | None) -> Obstacle | None:
    """What is wrong with `device.visible` by itself, for a run that is to use a GPU."""
    mask = of_config(visible or ())
    if visible is None or (mask.entries and not mask.fault):
        return None
    if not visible:
        return Obstacle("a GPU", f"{mask.words} hides every GPU", mask.removal)
    needs = f"`{CONFIGURED}` to name each GPU once, all by ordinal or all by UUID"
    return Obstacle(needs, f"{mask.words} {mask.fault or 'hides every GPU'}", "correct it")


def hides_all(masks: Sequence[Mask]) -> Obstacle | None:
    """Why these masks leave no GPU at all; None where, by themselves, they leave some."""
    for mask in masks:
        if not mask.entries:
            return Obstacle("a GPU", f"{mask.words} {mask.fault or 'hides every GPU'}", mask.removal)
    conflict = contradiction(masks)
    if conflict and _beyond(masks) == masks[1].entries:
        return Obstacle("a GPU", conflict, "set only one of the two")
    return None


def notices(visible: Sequence[int | str] | None, environ: Mapping[str, str], hip: bool) -> list[str]:
    """One sentence for everything in the masks that does not do what it seems to do."""
    applied = in_force(visible, environ, hip)
    conflict = contradiction(applied)
    found = lookalikes(environ, hip) + _overridden(visible, environ, hip)
    found += [f"{mask.words} {mask.fault}" for mask in applied if mask.fault and mask.source != CONFIGURED]
    if conflict:
        found.append(f"{conflict}; set only one of the two")
    if hip:
        found += [
            f"{mask.words} is taken as not set by ROCm and as no GPU by torch; unset it, or set it to {HIDE_ALL}"
            for mask in applied
            if mask.source != ROCR and not mask.value.strip()
        ]
    return found


def lookalikes(environ: Mapping[str, str], hip: bool) -> list[str]:
    """A sentence for each variable that was probably meant to be a mask and does nothing."""
    real = VARIABLES if hip else (CUDA,)
    found = []
    for name in sorted(environ):
        if name in VARIABLES or not name.upper().startswith(_LOOKALIKE):
            continue
        # The nearest name in real use, CUDA_DISABLE_PTX_JIT, is 0.6 alike; CUDA_DEVICES is 0.75.
        near = difflib.get_close_matches(name.upper(), real, n=1, cutoff=0.75)
        if near:
            found.append(f"the environment variable {name!r} ({environ[name]!r}) does nothing; did you mean {near[0]}?")
    return found


def _overridden(visible: Sequence[int | str] | None, environ: Mapping[str, str], hip: bool) -> list[str]:
    """A sentence for each of the shell's masks that gives way to another mask and says something else."""
    names = [name for name in ((HIP, CUDA) if hip else (CUDA,)) if name in environ]
    shell = [of_variable(name, environ[name]) for name in names]
    if visible is not None:
        wins = of_config(visible)
        return [
            f"{mask.words} from the shell disagrees with {wins.words}; the configuration wins"
            for mask in shell
            if mask.entries != wins.entries
        ]
    return [
        f"{mask.words} does nothing beside {shell[0].words}; unset one of them"
        for mask in shell[1:]
        if mask.entries != shell[0].entries
    ]
