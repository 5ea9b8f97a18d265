"""Dataclasses of an example schema, shared by the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runner.config.parts import key


@dataclass(frozen=True, kw_only=True)
class Cat:
    name: Literal["cat"] = key("kind")
    lives: int = key("lives", at_least=1, at_most=9)


@dataclass(frozen=True, kw_only=True)
class Dog:
    name: Literal["dog"] = key("kind")
    tricks: dict[str, float] = key("skill in each trick")  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class Bowl:
    size: float = key("size", above=0, below=10)
