"""A change of layout moves no bit: fourteen runs have the answers that they had before the package was rearranged."""

from __future__ import annotations

import json

import layout
import older
import pytest


def test_fourteen_runs_have_the_answers_that_they_had() -> None:
    if not older.is_same_machine():
        pytest.skip("bits are those of another machine or torch; compare two commits with tests/integration/layout.py")
    assert layout.answers() == json.loads(layout.RECORDED.read_text(encoding="utf-8"))
