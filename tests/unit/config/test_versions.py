"""Configurations of older versions: missing newer keys are completed, and newer keys are left out of the hash."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from runner.config import validation, versions
from runner.config.parts import key
from unit.config.pets import Bowl, Cat, Dog


@dataclass(frozen=True, kw_only=True)
class Off:
    name: Literal["off"] = key("kind", before="off")


@dataclass(frozen=True, kw_only=True)
class Bell:
    name: Literal["bell"] = key("kind")
    notes: tuple[int, ...] = key("notes", before=[1, 2])


@dataclass(frozen=True, kw_only=True)
class Lamp:
    watts: int = key("power", at_least=1, before=40)
    share: int | float = key("number or fraction of lamps", before=1)


@dataclass(frozen=True, kw_only=True)
class Room:
    floor: int = key("floor")
    door: str | None = key("colour of the door", before=None)
    old: int = key("included in every hash", before=8, hashed=True)
    pet: Cat | Dog
    lamp: Lamp
    alarm: Bell | Off
    bowl: Bowl


SAVED: dict[str, Any] = {"floor": 1, "pet": {"name": "cat", "lives": 9}, "bowl": {"size": 1}}
WHOLE: dict[str, Any] = {
    **SAVED, "door": None, "old": 8, "lamp": {"watts": 40, "share": 1}, "alarm": {"name": "off"},
}  # fmt: skip


def test_missing_newer_keys_are_completed() -> None:
    assert versions.completed(Room, SAVED) == WHOLE
    assert versions.completed(Room, WHOLE) == WHOLE
    assert validation.build(Room, WHOLE)[1] == []


def test_a_missing_key_of_a_group_is_completed() -> None:
    found = versions.completed(Room, {**SAVED, "lamp": {"watts": 60}, "alarm": {"name": "bell"}})
    assert found["lamp"] == {"watts": 60, "share": 1}
    assert found["alarm"] == {"name": "bell", "notes": [1, 2]}


def test_saved_values_and_the_schema_are_not_modified() -> None:
    values: dict[str, Any] = {"alarm": {"name": "bell"}}
    versions.completed(Room, values)["alarm"]["notes"].append(3)
    assert values == {"alarm": {"name": "bell"}}
    assert versions.completed(Room, values)["alarm"]["notes"] == [1, 2]


@pytest.mark.parametrize(
    "values", [None, 3, [], {"pet": None}, {"pet": {"name": "cow"}}, {"pet": {"name": [1]}}, {"lamp": 5}]
)
def test_invalid_values_are_left_to_validation(values: Any) -> None:
    found = versions.completed(Room, values)
    assert found == values if not isinstance(values, dict) else found.items() >= values.items()


def test_a_missing_key_that_is_as_old_as_its_group_is_refused() -> None:
    values = versions.completed(Room, {"pet": {"name": "cat"}, "lamp": {}})
    assert validation.build(Room, values)[1] == [
        "`floor` is missing; it must be an integer",
        "`pet.lives` is missing; it must be an integer from 1 to 9",
        "`bowl` is missing; it must be a group of keys",
    ]


def test_newer_keys_with_their_value_from_before_are_left_out() -> None:
    assert versions.without_newer(Room, WHOLE) == {**SAVED, "old": 8}
    lit = {**WHOLE, "lamp": {"watts": 60, "share": 1}, "door": "red"}
    assert versions.without_newer(Room, lit) == {**SAVED, "old": 8, "door": "red", "lamp": {"watts": 60}}
    assert versions.without_newer(Room, {**WHOLE, "alarm": {"name": "bell", "notes": [1, 2]}})["alarm"] == {
        "name": "bell"
    }
    assert versions.without_newer(Room, {**WHOLE, "lamp": {"watts": 40, "share": 1.0}})["lamp"] == {"share": 1.0}
    assert WHOLE["lamp"] == {"watts": 40, "share": 1}
