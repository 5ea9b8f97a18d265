"""Output of an explanation, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runner.commands.explain.explanation import Explanation, Value, as_yaml
from runner.commands.explain.sources import GROUPS, Assignment
from runner.errors import printable

MAX_WIDTH = 40
"""Largest width of the column with the values."""


def plain(explanation: Explanation) -> dict[str, Any]:
    """Return the explanation as JSON values.

    `set_by` is the assignment in effect. `before` has those that it replaced, first to last.
    """
    values = [
        {
            "key": v.key,
            "value": v.value,
            "set_by": v.assignments[-1].plain(),
            "before": [assignment.plain() for assignment in v.assignments[:-1]],
            "meaning": v.meaning,
            "unit": v.unit or None,
            "at_start": v.at_start,
        }
        for v in explanation.values
    ]
    choices = [
        {
            "group": group,
            "option": assignments[-1].value,
            "set_by": assignments[-1].plain(),
            "before": [assignment.plain() for assignment in assignments[:-1]],
        }
        for group, assignments in explanation.choices.items()
    ]
    return {
        "choices": choices,
        "values": values,
        "notices": list(explanation.notices),
        "remarks": list(explanation.remarks),
    }


def text(explanation: Explanation) -> str:
    """Return the explanation as text: top-level keys, then each group below the choice of its option, then remarks and notices."""
    heads = {group: (f"{group}={chosen[-1].value}", chosen) for group, chosen in explanation.choices.items()}
    rows = {v.key: (f"{v.key} = {as_yaml(v.value)}", v) for v in explanation.values}
    width = min(max(len(left) for left, _ in [*heads.values(), *rows.values()]), MAX_WIDTH)
    lines = [line for group in heads if group not in GROUPS for line in _head(*heads[group], width)]
    printed = set()
    for key, (left, value) in rows.items():
        group = key.partition(".")[0]
        if group in heads and group not in printed:
            printed.add(group)
            lines += ["", *_head(*heads[group], width)]
        lines += _row(left, value, width)
    lines += [f"note: {remark}" for remark in explanation.remarks]
    lines += [f"warning: {notice}" for notice in explanation.notices]
    return "\n".join(map(printable, lines)).lstrip("\n") + "\n"


def _head(left: str, assignments: Sequence[Assignment], width: int) -> list[str]:
    return [f"{left:<{width}}  {assignments[-1].place}", *_before(assignments[:-1])]


def _row(left: str, value: Value, width: int) -> list[str]:
    unit = f" [{value.unit}]" if value.unit else ""
    return [
        f"{left:<{width}}  {value.assignments[-1].place}",
        f"    {value.meaning}{unit}",
        *([f"    written as {value.reference}"] if value.reference else []),
        *([f"    at the start of the run: {value.at_start}"] if value.at_start else []),
        *_before(value.assignments[:-1]),
    ]


def _before(assignments: Sequence[Assignment]) -> list[str]:
    return [f"    before: {as_yaml(assignment.value)}, {assignment.place}" for assignment in reversed(assignments)]
