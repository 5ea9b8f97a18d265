"""One finding about a machine: its subject, state, reason and remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "limited", "broken"]


@dataclass(frozen=True)
class Finding:
    """Finding about one subject: ok, limited (runs are possible without it) or broken (no run is possible)."""

    subject: str
    state: State
    reason: str
    remedy: str | None = None


def able(findings: Iterable[Finding]) -> bool:
    """Whether a run is possible."""
    return all(finding.state != "broken" for finding in findings)
