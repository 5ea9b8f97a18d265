"""Reading the schema: dotted keys, variants, types and flags."""

from __future__ import annotations

from dataclasses import dataclass

from runner.config import introspection
from runner.config.parts import key
from unit.config.pets import Bowl, Cat, Dog


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
