"""The schema: what fits a type, and the sentence for everything that does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from runner.config import validation
from runner.config.validation import key


@dataclass(frozen=True, kw_only=True)
class Cat:
    name: Literal["cat"] = key("kind")
    lives: int = key("lives", at_least=1, at_most=9)


@dataclass(frozen=True, kw_only=True)
class Dog:
    name: Literal["dog"] = key("kind")
    tricks: dict[str, float] = key("how well it knows each")  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class Bowl:
    size: float = key("size", above=0, below=10)


@dataclass(frozen=True, kw_only=True)
class House:
    owner: str = key("who", pattern="[a-z]+")
    rooms: int | None = key("rooms", at_least=1)
    share: int | float = key("rooms or a share of them", at_least=0)
    widths: tuple[int, ...] = key("widths", at_least=1)
    pair: tuple[float, float] = key("two shares", at_least=0, below=1)
    visible: tuple[int | str, ...] | None = key("ordinals or names", at_least=0)
    colour: Literal["red", "green", "off"] = key("colour")
    note: str | None = key("what else there is")
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


def test_values_get_the_types_of_the_fields() -> None:
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
    ("name", "value", "kept"),
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
def test_values_that_fit(name: str, value: Any, kept: Any) -> None:
    found = getattr(accepted(**{name: value}), name)
    assert found == kept
    assert type(found) is type(kept)


def test_a_share_of_one_is_not_one_row() -> None:
    assert isinstance(accepted(share=1.0).share, float)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("rooms", "abc", "`rooms` must be an integer of at least 1 or null, but is the text 'abc'"),
        ("rooms", 10.5, "`rooms` must be an integer of at least 1 or null, but is 10.5"),
        ("rooms", 0, "`rooms` must be an integer of at least 1 or null, but is 0"),
        ("rooms", True, "`rooms` must be an integer of at least 1 or null, but is true"),
        ("rooms", float("nan"), "`rooms` must be an integer of at least 1 or null, but is nan"),
        ("rooms", float("inf"), "`rooms` must be an integer of at least 1 or null, but is inf"),
        ("rooms", [1], "`rooms` must be an integer of at least 1 or null, but is [1]"),
        ("rooms", {"a": 1}, "`rooms` must be an integer of at least 1 or null, but is {'a': 1}"),
        ("rooms", 2**63, "`rooms` must be an integer of at least 1 or null, but is an integer of more than 64 bits"),
        ("warm", "yes", "`warm` must be true or false, but is the text 'yes'"),
        ("warm", 1, "`warm` must be true or false, but is 1"),
        ("warm", None, "`warm` must be true or false, but is null"),
        ("colour", "gren", "`colour` must be one of red, green, off, but is the text 'gren'; did you mean green?"),
        ("colour", "RED", "`colour` must be one of red, green, off, but is the text 'RED'; did you mean red?"),
        (
            "colour",
            False,
            "`colour` must be one of red, green, off, but is false; "
            "YAML reads yes, no, on and off as true and false: put it in quotes",
        ),
        ("owner", "Ann", "`owner` must be a text that matches [a-z]+, but is the text 'Ann'"),
        ("owner", "ann\n", "`owner` must be a text that matches [a-z]+, but is the text 'ann\\n'"),
        ("owner", 8, "`owner` must be a text that matches [a-z]+, but is 8; put it in quotes"),
        ("note", 45045, "`note` must be a text or null, but is 45045; put it in quotes"),
        ("note", "???", "`note` must be a text or null, but is missing; give it with note=…"),
        ("widths", 64, "`widths` must be a list, each an integer of at least 1, but is 64; write widths=[64]"),
        ("widths", [0], "`widths` must be a list, each an integer of at least 1, but is [0]"),
        ("widths", [3.5], "`widths` must be a list, each an integer of at least 1, but is [3.5]"),
        ("widths", [[1]], "`widths` must be a list, each an integer of at least 1, but is [[1]]"),
        ("widths", None, "`widths` must be a list, each an integer of at least 1, but is null"),
        (
            "pair",
            [1.5, 0.9],
            "`pair` must be a list of 2, each a finite number of at least 0 and below 1, but is [1.5, 0.9]",
        ),
        ("pair", [0.9], "`pair` must be a list of 2, each a finite number of at least 0 and below 1, but is [0.9]"),
        ("visible", [-1], "`visible` must be a list, each an integer of at least 0 or a text or null, but is [-1]"),
        ("bowl", None, "`bowl` must be a group of keys, but is null; write its keys below it"),
        ("bowl", [1], "`bowl` must be a group of keys, but is [1]; write its keys below it"),
        ("bowl", {"size": 0}, "`bowl.size` must be a finite number above 0 and below 10, but is 0"),
        ("bowl", {"size": "0.1"}, "`bowl.size` must be a finite number above 0 and below 10, but is the text '0.1'"),
        ("bowl", {}, "`bowl.size` is missing; it must be a finite number above 0 and below 10"),
        ("bowl", {"size": 1, "sise": 2}, "`bowl.sise` is not a key; did you mean `bowl.size`?"),
        ("bowl", {"size": 1, 1: 2}, "`bowl.1` is not a key of bowl, which has size; take it out"),
        ("pet", None, "`pet` must be a group of keys, but is null; write its keys below it"),
        ("pet", "cat", "`pet` must be a group of keys, but is the text 'cat'; write its keys below it"),
        ("pet", {"name": "cta"}, "`pet.name` must be one of cat, dog, but is the text 'cta'; did you mean cat?"),
        ("pet", {"name": ["cat"]}, "`pet.name` must be one of cat, dog, but is ['cat']; did you mean cat?"),
        ("pet", {"lives": 3}, "`pet.name` must be one of cat, dog, but is missing"),
        (
            "pet",
            {"name": "cat", "lives": 1, "tricks": {}},
            "`pet.tricks` is not a key of cat, which has lives; take it out",
        ),
        (
            "pet",
            {"name": "dog", "tricks": {"sit": "x"}},
            "`pet.tricks` must be names with a finite number each, but is {'sit': 'x'}",
        ),
        (
            "pet",
            {"name": "dog", "tricks": {"sit": float("nan")}},
            "`pet.tricks` must be names with a finite number each, but is {'sit': nan}",
        ),
        (
            "pet",
            {"name": "dog", "tricks": {1: 2}},
            "`pet.tricks` must be names with a finite number each, but is {1: 2}",
        ),
        ("pet", {"name": "dog", "tricks": 3}, "`pet.tricks` must be names with a finite number each, but is 3"),
        ("sharre", 1, "`sharre` is not a key; did you mean `share`?"),
        ("lives", 1, "`lives` is not a key; did you mean `pet.lives`?"),
        ("_target_", "os.system", "`_target_` is not a key; see docs/config.md for the keys there are"),
    ],
)
def test_the_sentence_of_a_value_that_does_not_fit(name: str, value: Any, sentence: str) -> None:
    assert problems(**{name: value}) == [sentence]


def test_integers_beyond_every_float_are_no_numbers() -> None:
    """Python writes no integer of more than 4,300 digits, and turns none above 1.8e308 into a float."""
    (sentence,) = problems(bowl={"size": 10**5000})
    assert sentence == (
        "`bowl.size` must be a finite number above 0 and below 10, but is an integer of more than 64 bits"
    )


def test_all_problems_are_told_at_once() -> None:
    found = problems(rooms=0, warm="no", bowl={"size": -1, "colour": 3}, pet={"name": "cat", "lives": 10}, stray=1)
    assert [sentence.split("`")[1] for sentence in found] == [
        "stray",
        "rooms",
        "warm",
        "pet.lives",
        "bowl.colour",
        "bowl.size",
    ]


def test_large_bounds_are_written_out() -> None:
    assert validation.requirement(int, validation.Key("", at_most=2**32 - 1)) == "an integer of at most 4294967295"


def test_long_values_are_cut() -> None:
    (sentence,) = problems(owner="A" * 300)
    assert sentence.endswith(f"but is the text '{'A' * 116}…")


@pytest.mark.parametrize("value", [None, 3, "text", [1]])
def test_a_configuration_is_a_group(value: Any) -> None:
    built, found = validation.build(House, value)
    assert built is None
    assert found == [
        f"the configuration must be a group of keys, but is {validation.shown(value)}; write its keys below it"
    ]


def test_paths_name_every_variant() -> None:
    names = list(validation.paths(House))
    assert {"pet", "pet.name", "pet.lives", "pet.tricks", "bowl", "bowl.size", "rooms"} <= set(names)
    assert validation.is_group(House, "pet")
    assert not validation.is_group(House, "rooms")
    assert validation.is_mapping(House, "pet.tricks")
    assert not validation.is_mapping(House, "pet.lives")
    assert validation.field_types(House, "nope.nope") == []


@pytest.mark.parametrize(
    ("word", "key_meant"),
    [("bowl.sise", "bowl.size"), ("sise", "bowl.size"), ("pet.livs", "pet.lives"), ("xyzzy", None), ("", None)],
)
def test_the_closest_key(word: str, key_meant: str | None) -> None:
    assert validation.closest(word, list(validation.paths(House))) == key_meant


# ----------------------------------------------------------------------------------------------- newer than what was saved


@dataclass(frozen=True, kw_only=True)
class Off:
    name: Literal["off"] = key("kind", before="off")


@dataclass(frozen=True, kw_only=True)
class Bell:
    name: Literal["bell"] = key("kind")
    notes: tuple[int, ...] = key("what it plays", before=[1, 2])


@dataclass(frozen=True, kw_only=True)
class Lamp:
    watts: int = key("power", at_least=1, before=40)
    share: int | float = key("lamps or a share of them", before=1)


@dataclass(frozen=True, kw_only=True)
class Room:
    floor: int = key("which")
    door: str | None = key("its colour", before=None)
    old: int = key("in the hash all along", before=8, hashed=True)
    pet: Cat | Dog
    lamp: Lamp
    alarm: Bell | Off
    bowl: Bowl


SAVED: dict[str, Any] = {"floor": 1, "pet": {"name": "cat", "lives": 9}, "bowl": {"size": 1}}
WHOLE: dict[str, Any] = {
    **SAVED, "door": None, "old": 8, "lamp": {"watts": 40, "share": 1}, "alarm": {"name": "off"},
}  # fmt: skip


def test_what_was_saved_is_completed_with_the_values_of_before() -> None:
    assert validation.completed(Room, SAVED) == WHOLE
    assert validation.completed(Room, WHOLE) == WHOLE
    assert validation.build(Room, WHOLE)[1] == []


def test_a_key_within_a_group_is_completed() -> None:
    found = validation.completed(Room, {**SAVED, "lamp": {"watts": 60}, "alarm": {"name": "bell"}})
    assert found["lamp"] == {"watts": 60, "share": 1}
    assert found["alarm"] == {"name": "bell", "notes": [1, 2]}


def test_what_was_saved_and_what_is_named_stay_as_they_are() -> None:
    values: dict[str, Any] = {"alarm": {"name": "bell"}}
    validation.completed(Room, values)["alarm"]["notes"].append(3)
    assert values == {"alarm": {"name": "bell"}}
    assert validation.completed(Room, values)["alarm"]["notes"] == [1, 2]


@pytest.mark.parametrize(
    "values", [None, 3, [], {"pet": None}, {"pet": {"name": "cow"}}, {"pet": {"name": [1]}}, {"lamp": 5}]
)
def test_what_does_not_fit_is_left_to_be_refused(values: Any) -> None:
    found = validation.completed(Room, values)
    assert found == values if not isinstance(values, dict) else found.items() >= values.items()


def test_a_key_that_is_as_old_as_its_group_is_refused_where_it_is_missing() -> None:
    values = validation.completed(Room, {"pet": {"name": "cat"}, "lamp": {}})
    assert validation.build(Room, values)[1] == [
        "`floor` is missing; it must be an integer",
        "`pet.lives` is missing; it must be an integer of at least 1 and of at most 9",
        "`bowl` is missing; it must be a group of keys",
    ]


def test_newer_keys_are_left_out_while_they_have_the_values_of_before() -> None:
    assert validation.without_newer(Room, WHOLE) == {**SAVED, "old": 8}
    lit = {**WHOLE, "lamp": {"watts": 60, "share": 1}, "door": "red"}
    assert validation.without_newer(Room, lit) == {**SAVED, "old": 8, "door": "red", "lamp": {"watts": 60}}
    assert validation.without_newer(Room, {**WHOLE, "alarm": {"name": "bell", "notes": [1, 2]}})["alarm"] == {
        "name": "bell"
    }
    assert validation.without_newer(Room, {**WHOLE, "lamp": {"watts": 40, "share": 1.0}})["lamp"] == {"share": 1.0}
    assert WHOLE["lamp"] == {"watts": 40, "share": 1}
