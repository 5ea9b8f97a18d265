"""Masks: variables that limit the GPUs which a process sees, read as the driver and torch read them.

Nothing here imports torch or reads the environment: every function receives the variables. `hip` says whether torch is a
ROCm build. With ROCm, `ROCR_VISIBLE_DEVICES` filters the machine's GPUs first. `HIP_VISIBLE_DEVICES`, or without it
`CUDA_VISIBLE_DEVICES`, then selects among the remaining ones. A CUDA build reads `CUDA_VISIBLE_DEVICES` only.
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

# An empty text hides every GPU from CUDA, but ROCm ignores it; -1 hides them from both.
HIDE_ALL = "-1"
_UUID = ("GPU-", "MIG-")
_LOOKALIKE = ("CUDA", "HIP", "ROCR", "ROCM", "GPU")


class Obstacle(NamedTuple):
    """Reason why a device cannot be used: the requirement, what was found instead, and the remedy."""

    needs: str
    found: str
    remedy: str


@dataclass(frozen=True)
class Mask:
    """One mask: the variable or key that holds it, its value, and a label for messages with both."""

    source: str
    value: str
    label: str

    @property
    def removal(self) -> str:
        """Advice that removes the mask."""
        return f"set {CONFIGURED}=null" if self.source == CONFIGURED else f"unset {self.source}"

    @property
    def entries(self) -> tuple[str, ...]:
        """Valid ordinals and UUIDs, in order; without any, every GPU is hidden."""
        return self._read()[0]

    @property
    def fault(self) -> str | None:
        """Part of the mask that is ignored, as the end of a sentence that starts with the mask; None when all is valid."""
        return self._read()[1]

    def _read(self) -> tuple[tuple[str, ...], str | None]:
        """Return the valid entries and the fault, read as torch 2.13 reads them.

        Entries from the first invalid one on are ignored, and a duplicate hides every GPU. Only ROCR mixes ordinals with
        UUIDs, and a duplicate only ends its list (ROCR-Runtime, amd_filter_device.h).
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
                fault = fault or f"has the entry {part!r}, of which only {entry} is read"
            kept.append(entry)
        return tuple(kept), fault

    def _entry(self, part: str) -> str | None:
        """Return the ordinal or UUID of one entry, or None when it is invalid."""
        by_uuid = self.value.startswith(_UUID)
        if part.startswith(_UUID) and (by_uuid or self.source == ROCR):
            return part
        number = re.match(r"\+?(\d+)", part.strip())
        return str(int(number[1])) if number and not by_uuid else None


def _cut(rest: Sequence[str], some_kept: bool) -> str | None:
    """Return the fault of a mask whose entries `rest` are ignored; None for "", "-1" and a last comma, which are common."""
    if [part.strip() for part in rest] in ([HIDE_ALL], [""]):
        return None
    effect = "so it and all later entries are ignored" if some_kept else "which hides every GPU"
    return f"has the entry {rest[0]!r} where another ordinal or UUID must be, {effect}"


def variable_mask(name: str, value: str) -> Mask:
    """Return the mask that an environment variable holds."""
    return Mask(name, value, f"{name}={value!r}")


def config_mask(visible: Sequence[int | str]) -> Mask:
    """Return the mask that `device.visible` requests."""
    value = ",".join(map(str, visible)) if visible else HIDE_ALL
    return Mask(CONFIGURED, value, f"{CONFIGURED}=[{', '.join(map(str, visible))}]")


def variable(hip: bool) -> str:
    """Return the name of the variable that is set to `device.visible`."""
    return HIP if hip else CUDA


def in_force(visible: Sequence[int | str] | None, environ: Mapping[str, str], hip: bool) -> list[Mask]:
    """Return the masks in force, in the order in which they filter; `visible` replaces the shell's own, except ROCR."""
    first = [variable_mask(ROCR, environ[ROCR])] if hip and ROCR in environ else []
    if visible is not None:
        return [*first, config_mask(visible)]
    names = [name for name in ((HIP, CUDA) if hip else (CUDA,)) if name in environ]
    return first + [variable_mask(name, environ[name]) for name in names[:1]]


def contradiction(masks: Sequence[Mask]) -> str | None:
    """Return the clause for a second mask that names GPUs which the first one does not leave; None when there is none."""
    beyond = _beyond(masks)
    if not beyond:
        return None
    first, second = masks
    left = len(first.entries)
    gpus = "1 GPU, number 0" if left == 1 else f"{left} GPUs, numbers 0 to {left - 1}"
    ignored = f"{', '.join(beyond)} {'is' if len(beyond) == 1 else 'are'} ignored"
    effect = "no GPU is left" if beyond == second.entries else ignored
    return f"{first.label} leaves {gpus}, and {second.label} selects among these, so {effect}"


def _beyond(masks: Sequence[Mask]) -> tuple[str, ...]:
    """Return the second mask's entries, starting with the first one that the first mask does not leave."""
    if len(masks) < 2 or not masks[0].entries:
        return ()
    left, entries = len(masks[0].entries), masks[1].entries
    return tuple(dropwhile(lambda entry: not entry.isdecimal() or int(entry) < left, entries))


def unusable(visible: Sequence[int | str] | None) -> Obstacle | None:
    """Return why `device.visible` alone prevents the use of a GPU, or None."""
    mask = config_mask(visible or ())
    if visible is None or (mask.entries and not mask.fault):
        return None
    if not visible:
        return Obstacle("a GPU", f"{mask.label} hides every GPU", mask.removal)
    needs = f"`{CONFIGURED}` to name each GPU once, all by ordinal or all by UUID"
    return Obstacle(needs, f"{mask.label} {mask.fault or 'hides every GPU'}", "correct it")


def hides_all(masks: Sequence[Mask]) -> Obstacle | None:
    """Return why these masks hide every GPU, or None when they leave some."""
    for mask in masks:
        if not mask.entries:
            return Obstacle("a GPU", f"{mask.label} {mask.fault or 'hides every GPU'}", mask.removal)
    conflict = contradiction(masks)
    if conflict and _beyond(masks) == masks[1].entries:
        return Obstacle("a GPU", conflict, "set only one of the two")
    return None


def notices(visible: Sequence[int | str] | None, environ: Mapping[str, str], hip: bool) -> list[str]:
    """Return one sentence for each part of the masks that has no effect or a surprising one."""
    applied = in_force(visible, environ, hip)
    conflict = contradiction(applied)
    sentences = lookalikes(environ, hip) + _overridden(visible, environ, hip)
    sentences += [f"{mask.label} {mask.fault}" for mask in applied if mask.fault and mask.source != CONFIGURED]
    if conflict:
        sentences.append(f"{conflict}; set only one of the two")
    if hip:
        sentences += [
            f"{mask.label} is ignored by ROCm but hides every GPU from torch; unset it, or set it to {HIDE_ALL}"
            for mask in applied
            if mask.source != ROCR and not mask.value.strip()
        ]
    return sentences


def lookalikes(environ: Mapping[str, str], hip: bool) -> list[str]:
    """Return one sentence for each variable that was probably meant to be a mask and has no effect."""
    real = VARIABLES if hip else (CUDA,)
    sentences = []
    for name in sorted(environ):
        if name in VARIABLES or not name.upper().startswith(_LOOKALIKE):
            continue
        # The most similar name in real use, CUDA_DISABLE_PTX_JIT, has a ratio of 0.6; CUDA_DEVICES has 0.75.
        near = difflib.get_close_matches(name.upper(), real, n=1, cutoff=0.75)
        if near:
            sentences.append(
                f"the environment variable {name!r} ({environ[name]!r}) has no effect; did you mean {near[0]}?"
            )
    return sentences


def _overridden(visible: Sequence[int | str] | None, environ: Mapping[str, str], hip: bool) -> list[str]:
    """Return one sentence for each of the shell's masks that another mask replaces and contradicts."""
    names = [name for name in ((HIP, CUDA) if hip else (CUDA,)) if name in environ]
    shell = [variable_mask(name, environ[name]) for name in names]
    if visible is not None:
        wins = config_mask(visible)
        return [
            f"{mask.label} from the shell disagrees with {wins.label}; the configuration wins"
            for mask in shell
            if mask.entries != wins.entries
        ]
    return [
        f"{mask.label} has no effect because {shell[0].label} is set; unset one of them"
        for mask in shell[1:]
        if mask.entries != shell[0].entries
    ]
