"""Validation: values that fit their field are converted, and every other value gets a message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from runner.config import introspection, parts, validation
from runner.config.parts import key
from unit.config.pets import Bowl, Cat, Dog


@dataclass(frozen=True, kw_only=True)
class House:
    owner: str = key("owner", pattern="[a-z]+")
    rooms: int | None = key("rooms", at_least=1)
    share: int | float = key("number or fraction of rooms", at_least=0)
    widths: tuple[int, ...] = key("widths", at_least=1)
    pair: tuple[float, float] = key("two fractions", at_least=0, below=1)
    visible: tuple[int | str, ...] | None = key("ordinals or names", at_least=0)
    colour: Literal["red", "green", "off"] = key("colour")
    note: str | None = key("note")
    warm: bool = key("heated")
    pet: Cat | Dog
    bowl: Bowl


GOOD: dict[str, Any] = {
    "owner": "ann",
    "rooms": 3,
    "share": 0.5,
    "widths": [1, 2],
    "pair": [0, 0.5],
    "visible": None,
    "colour": "red",
    "note": None,
    "warm": True,
    "pet": {"name": "cat", "lives": 9},
    "bowl": {"size": 1},
}


def problems(**values: Any) -> list[str]:
    built, found = validation.build(House, {**GOOD, **values})
    assert (built is None) == bool(found)
    return found


def accepted(**values: Any) -> House:
    built, found = validation.build(House, {**GOOD, **values})
    assert found == []
    assert built is not None
    return built


def test_values_are_converted_to_the_types_of_the_fields() -> None:
    house = accepted()
    assert house == House(
        owner="ann",
        rooms=3,
        share=0.5,
        widths=(1, 2),
        pair=(0.0, 0.5),
        visible=None,
        colour="red",
        note=None,
        warm=True,
        pet=Cat(name="cat", lives=9),
        bowl=Bowl(size=1.0),
    )
    assert isinstance(house.bowl.size, float)
    assert isinstance(house.pair[0], float)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rooms", 1e3, 1000),
        ("rooms", None, None),
        ("rooms", 2**63 - 1, 2**63 - 1),
        ("share", 1, 1),
        ("share", 0.0, 0.0),
        ("widths", [], ()),
        ("visible", [0, "GPU-1"], (0, "GPU-1")),
        ("note", "", ""),
    ],
)
def test_values_that_fit_are_accepted(name: str, value: Any, expected: Any) -> None:
    result = getattr(accepted(**{name: value}), name)
    assert result == expected
    assert type(result) is type(expected)


def test_a_float_of_one_stays_a_float() -> None:
    assert isinstance(accepted(share=1.0).share, float)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rooms", "abc", "`rooms` must be an integer of at least 1 or null, got 'abc'"),
        ("rooms", 10.5, "`rooms` must be an integer of at least 1 or null, got 10.5"),
        ("rooms", 0, "`rooms` must be an integer of at least 1 or null, got 0"),
        ("rooms", True, "`rooms` must be an integer of at least 1 or null, got true"),
        ("rooms", float("nan"), "`rooms` must be an integer of at least 1 or null, got nan"),
        ("rooms", float("inf"), "`rooms` must be an integer of at least 1 or null, got inf"),
        ("rooms", [1], "`rooms` must be an integer of at least 1 or null, got [1]"),
        ("rooms", {"a": 1}, "`rooms` must be an integer of at least 1 or null, got {'a': 1}"),
        ("rooms", 2**63, "`rooms` must be an integer of at least 1 or null, got an integer of more than 64 bits"),
        ("warm", "yes", "`warm` must be true or false, got 'yes'"),
        ("warm", 1, "`warm` must be true or false, got 1"),
        ("warm", None, "`warm` must be true or false, got null"),
        ("colour", "gren", "`colour` must be one of red, green, off, got 'gren'; did you mean green?"),
        ("colour", "RED", "`colour` must be one of red, green, off, got 'RED'; did you mean red?"),
        (
            "colour",
            False,
            "`colour` must be one of red, green, off, got false; "
            "put it in quotes, because YAML reads yes, no, on and off as booleans",
        ),
        ("owner", "Ann", "`owner` must be a string that matches [a-z]+, got 'Ann'"),
        ("owner", "ann\n", "`owner` must be a string that matches [a-z]+, got 'ann\\n'"),
        ("owner", 8, "`owner` must be a string that matches [a-z]+, got 8; put it in quotes"),
        ("note", 45045, "`note` must be a string or null, got 45045; put it in quotes"),
        ("note", "???", "`note` is missing; give a string or null with note=…"),
        ("widths", 64, "`widths` must be a list, each item an integer of at least 1, got 64; write widths=[64]"),
        ("widths", [0], "`widths` must be a list, each item an integer of at least 1, got [0]"),
        ("widths", [3.5], "`widths` must be a list, each item an integer of at least 1, got [3.5]"),
        ("widths", [[1]], "`widths` must be a list, each item an integer of at least 1, got [[1]]"),
        ("widths", None, "`widths` must be a list, each item an integer of at least 1, got null"),
        (
            "pair",
            [1.5, 0.9],
            "`pair` must be a list of 2 items, each a finite number of at least 0 and below 1, got [1.5, 0.9]",
        ),
        ("pair", [0.9], "`pair` must be a list of 2 items, each a finite number of at least 0 and below 1, got [0.9]"),
        (
            "visible",
            [-1],
            "`visible` must be a list, each item an integer of at least 0 or a string, or null, got [-1]",
        ),
        ("bowl", None, "`bowl` must be a group of keys, got null; write its keys below it"),
        ("bowl", [1], "`bowl` must be a group of keys, got [1]; write its keys below it"),
        ("bowl", {"size": 0}, "`bowl.size` must be a finite number above 0 and below 10, got 0"),
        ("bowl", {"size": "0.1"}, "`bowl.size` must be a finite number above 0 and below 10, got '0.1'"),
        ("bowl", {}, "`bowl.size` is missing; it must be a finite number above 0 and below 10"),
        ("bowl", {"size": 1, "sise": 2}, "`bowl.sise` is not a key; did you mean `bowl.size`?"),
        ("bowl", {"size": 1, 1: 2}, "`bowl.1` is not a key of bowl, which has size; remove it"),
        ("pet", None, "`pet` must be a group of keys, got null; write its keys below it"),
        ("pet", "cat", "`pet` must be a group of keys, got 'cat'; write its keys below it"),
        ("pet", {"name": "cta"}, "`pet.name` must be one of cat, dog, got 'cta'; did you mean cat?"),
        ("pet", {"name": ["cat"]}, "`pet.name` must be one of cat, dog, got ['cat']; did you mean cat?"),
        ("pet", {"lives": 3}, "`pet.name` is missing; it must be one of cat, dog"),
        (
            "pet",
            {"name": "cat", "lives": 1, "tricks": {}},
            "`pet.tricks` is not a key of cat, which has lives; remove it",
        ),
        (
            "pet",
            {"name": "dog", "tricks": {"sit": "x"}},
            "`pet.tricks` must be a mapping from names to finite numbers, got {'sit': 'x'}",
        ),
        (
            "pet",
            {"name": "dog", "tricks": {"sit": float("nan")}},
            "`pet.tricks` must be a mapping from names to finite numbers, got {'sit': nan}",
        ),
        (
            "pet",
            {"name": "dog", "tricks": {1: 2}},
            "`pet.tricks` must be a mapping from names to finite numbers, got {1: 2}",
        ),
        ("pet", {"name": "dog", "tricks": 3}, "`pet.tricks` must be a mapping from names to finite numbers, got 3"),
        ("sharre", 1, "`sharre` is not a key; did you mean `share`?"),
        ("lives", 1, "`lives` is not a key; did you mean `pet.lives`?"),
        (
            "_target_",
            "os.system",
            "`_target_` is not a key, since a configuration does not call code; remove it",
        ),
    ],
)
def test_the_message_for_a_value_that_does_not_fit(name: str, value: Any, message: str) -> None:
    assert problems(**{name: value}) == [message]


def test_an_integer_beyond_the_range_of_floats_is_refused() -> None:
    """Python refuses to print integers of more than 4,300 digits, and to convert integers above 1.8e308 to float."""
    (message,) = problems(bowl={"size": 10**5000})
    assert message == ("`bowl.size` must be a finite number above 0 and below 10, got an integer of more than 64 bits")


def test_all_problems_are_reported_at_once() -> None:
    found = problems(rooms=0, warm="no", bowl={"size": -1, "colour": 3}, pet={"name": "cat", "lives": 10}, stray=1)
    assert [sentence.split("`")[1] for sentence in found] == [
        "stray",
        "rooms",
        "warm",
        "pet.lives",
        "bowl.colour",
        "bowl.size",
    ]


def test_large_bounds_are_printed_in_full() -> None:
    assert validation.requirement(int, parts.Key("", at_most=2**32 - 1)) == "an integer of at most 4294967295"


def test_long_values_are_shortened() -> None:
    (message,) = problems(owner="A" * 300)
    assert message.endswith(f"got '{'A' * 116}…")


@pytest.mark.parametrize("value", [None, 3, "text", [1]])
def test_a_configuration_must_be_a_mapping(value: Any) -> None:
    built, found = validation.build(House, value)
    assert built is None
    assert found == [
        f"the configuration must be a group of keys, got {validation.shown(value)}; write its keys below it"
    ]


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("bowl.sise", "bowl.size"), ("sise", "bowl.size"), ("pet.livs", "pet.lives"), ("xyzzy", None), ("", None)],
)
def test_the_closest_known_key_is_suggested(name: str, suggestion: str | None) -> None:
    assert validation.closest(name, list(introspection.paths(House))) == suggestion
