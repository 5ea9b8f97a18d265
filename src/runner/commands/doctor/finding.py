"""What is found out about a machine: one thing, its state, why, and what mends it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "limited", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing about a machine: ok, limited (a run can be done without it) or broken (no run can be done)."""

    subject: str
    state: State
    reason: str
    remedy: str | None = None


def able(findings: Iterable[Finding]) -> bool:
    """Whether a run can be done."""
    return all(finding.state != "broken" for finding in findings)
