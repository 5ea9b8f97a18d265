"""Reading the schema: dotted keys, variants, types and flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runner.config import introspection
from runner.config.parts import key


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
    rooms: int | None = key("rooms", at_least=1)
    pet: Cat | Dog
    bowl: Bowl


def test_paths_cover_every_variant() -> None:
    names = list(introspection.paths(House))
    assert {"pet", "pet.name", "pet.lives", "pet.tricks", "bowl", "bowl.size", "rooms"} <= set(names)
    assert introspection.is_group(House, "pet")
    assert not introspection.is_group(House, "rooms")
    assert introspection.is_mapping(House, "pet.tricks")
    assert not introspection.is_mapping(House, "pet.lives")
    assert introspection.field_types(House, "nope.nope") == []
