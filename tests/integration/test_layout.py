"""A change of layout moves no bit: fourteen runs end with the recorded parameters."""

from __future__ import annotations

import json

import layout
import older
import pytest


def test_fourteen_runs_end_with_the_recorded_parameters() -> None:
    if not older.here():
        pytest.skip(
            "the bits were recorded on another machine or with another torch; compare two commits with tests/integration/layout.py"
        )
    assert layout.answers() == json.loads(layout.RECORDED.read_text(encoding="utf-8"))
