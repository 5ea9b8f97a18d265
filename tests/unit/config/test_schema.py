"""Values and meanings: `conf/` and `runner.config.schema` have the same keys."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from runner.config import introspection, parts, validation, versions
from runner.config.compose import compose
from runner.config.hydra_adapter import CONF, options
from runner.config.resume import refuse_other
from runner.config.schema import Config, config_hash, hashed, plain
from runner.errors import CheckpointError

GROUPS = {name: hint for name, hint in introspection.hints(Config).items() if introspection.variants(hint)}
FILES = sorted(path.relative_to(CONF).as_posix() for path in CONF.glob("*/*.yaml") if not path.stem.startswith("_"))


def load(path: Path) -> dict[str, Any]:
    """Return the values of a file and of the files in its defaults list that are in the same folder."""
    values: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
    defaults = [name for name in values.pop("defaults", []) if isinstance(name, str) and name != "_self_"]
    found: dict[str, Any] = {}
    for name in defaults:
        found |= load(path.with_name(f"{name}.yaml"))
    return found | values


def keys(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def dataclasses_in(kind: type) -> Iterator[type]:
    """Yield a dataclass and all dataclasses in it."""
    yield kind
    for hint in introspection.hints(kind).values():
        for variant in introspection.variants(hint).values():
            yield from dataclasses_in(variant)


def test_every_option_has_the_keys_of_its_dataclass() -> None:
    for file in [file for file in FILES if not file.startswith("experiment/")]:
        group, values = file.partition("/")[0], load(CONF / file)
        variants = introspection.variants(GROUPS[group])
        kind = variants[values["name"]] if "name" in values else variants[""]
        assert set(values) == keys(kind), file
        for name, hint in introspection.hints(kind).items():
            for nested in introspection.variants(hint).values():
                assert set(values[name]) == keys(nested), (file, name)


def test_every_dataclass_has_an_option() -> None:
    for group, hint in GROUPS.items():
        names = {load(CONF / file).get("name", "") for file in FILES if file.startswith(f"{group}/")}
        assert names == set(introspection.variants(hint)), group


def test_an_option_has_the_name_of_its_file() -> None:
    for file in FILES:
        name = load(CONF / file).get("name")
        assert name in (None, Path(file).stem), file


def test_the_main_file_has_the_keys_that_are_in_no_group() -> None:
    values = yaml.safe_load((CONF / "config.yaml").read_text())
    groups = [next(iter(entry)) for entry in values.pop("defaults") if entry != "_self_"]
    assert set(groups) == set(GROUPS)
    assert set(values) == keys(Config) - set(GROUPS)


def test_the_schema_has_no_values_and_every_key_has_a_meaning() -> None:
    for kind in dataclasses_in(Config):
        for field in dataclasses.fields(kind):
            assert field.default is dataclasses.MISSING, field.name
            assert field.default_factory is dataclasses.MISSING, field.name
            if not introspection.variants(introspection.hints(kind)[field.name]):
                assert introspection.keys(kind)[field.name].meaning, field.name
        assert kind.__doc__
        assert not kind.__doc__.startswith(f"{kind.__name__}(")


def test_every_option_has_a_description() -> None:
    described = options()
    for file in FILES:
        group, _, name = file.removesuffix(".yaml").partition("/")
        assert re.fullmatch(r".{5,}\.", described[group][name]), file


@pytest.mark.parametrize("name", options()["experiment"])
def test_an_experiment_composes_and_has_the_name_of_its_file(name: str) -> None:
    composed = compose([f"+experiment={name}"])
    assert composed.config.name == name
    assert composed.notices == ()


LINREG = compose(["+experiment=linreg"]).config


@pytest.mark.parametrize(
    "argument",
    ["name=other", "run_dir=there", "device.visible=[0]", "record.every_steps=7", "record.plots=false", "checkpoint.every_steps=3", "checkpoint.keep=null", "checkpoint.metric=r2", "launch.processes=4", "launch.timeout_seconds=5"],
)  # fmt: skip
def test_the_hash_ignores_placement_and_recording(argument: str) -> None:
    other = compose(["+experiment=linreg", argument]).config
    assert other != LINREG
    assert config_hash(other) == config_hash(LINREG)


def test_the_hash_ignores_resume() -> None:
    assert config_hash(dataclasses.replace(LINREG, resume="runs/x")) == config_hash(LINREG)


HASHED = [
    name
    for name in introspection.paths(Config)
    if not introspection.is_group(Config, name)
    and name.partition(".")[0] not in ("record", "checkpoint", "launch", "sweep", "predict", "seeds")
    and name not in ("name", "run_dir", "resume", "device.visible", "train.cuda_graph", "train.select")
]


def changed(config: Any, path: str) -> Any:
    """Return a configuration with one value changed, or None if it has no such key."""
    first, _, rest = path.partition(".")
    if not hasattr(config, first):
        return None
    value: Any = changed(getattr(config, first), rest) if rest else "something else"
    return None if value is None else dataclasses.replace(config, **{first: value})


@cache
def composed(*arguments: str) -> Config:
    return compose(arguments).config


def with_every_option_of(group: str) -> Iterator[Config]:
    for option in options().get(group, {"": ""}):
        table = ["data.path=x.csv", "data.target=y"] if option in ("csv", "parquet") else []
        named = (
            ["data.source=my_lab.parts:Part", "data.target=y"]
            if group == "data"
            else [f"{group}.target=my_lab.parts:Part"]
        )
        own = named if option == "custom" else []
        yield composed(*([f"{group}={option}"] if option else []), *table, *own)


def test_the_hash_depends_on_every_other_key() -> None:
    same = []
    for path in HASHED:
        config = next(c for c in with_every_option_of(path.partition(".")[0]) if changed(c, path) is not None)
        if config_hash(changed(config, path)) == config_hash(config):
            same.append(path)
    assert len(HASHED) > 50
    assert same == []


def test_the_hash_depends_on_values_and_not_on_their_notation() -> None:
    assert config_hash(compose(["+experiment=linreg", "optimizer.lr=0.0001"]).config) == config_hash(LINREG)
    assert config_hash(compose(["+experiment=linreg", "optimizer.lr=1e-4"]).config) == config_hash(LINREG)
    assert len(config_hash(LINREG)) == 64


def test_plain_values_give_the_same_configuration() -> None:
    values = plain(LINREG)
    assert yaml.safe_load(yaml.safe_dump(values)) == values
    built, problems = validation.build(Config, values)
    assert problems == []
    assert built == LINREG


UNSAFE = ["../../x", "/etc/x", "a/b", "a\\b", "", ".", "..", "a\0b", "a\n", "a\nb", "x" * 101, "~", "-rf", "a b", "ä", ".hidden", "a=b", "${x}"]  # fmt: skip


def test_a_name_that_is_no_safe_folder_name_is_refused() -> None:
    for name in UNSAFE:
        built, problems = validation.build(Config, plain(LINREG) | {"name": name})
        assert built is None, name
        assert problems[0].startswith("`name` must be a string that matches [A-Za-z0-9][A-Za-z0-9._-]{0,99}, got ")


def test_safe_folder_names_are_accepted() -> None:
    for name in ("a", "x" * 100, "run_2.b-3", "CON", "0"):
        assert validation.build(Config, plain(LINREG) | {"name": name})[1] == []


# ------------------------------------------------------------------------------------------------------------- newer keys


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shade:
    depth: int = parts.key("depth", before=0)
    colour: str = parts.key("colour", before="grey")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Later(Config):
    """Configuration of a later version."""

    ema: float | None = parts.key("decay of the moving average", before=None)
    shade: Shade


def later(**values: Any) -> Later:
    today = compose(["+experiment=linreg"]).config
    fields = {field.name: getattr(today, field.name) for field in dataclasses.fields(Config)}
    return Later(**{**fields, "ema": None, "shade": Shade(depth=0, colour="grey"), **values})


def test_a_newer_key_with_its_value_from_before_is_not_in_the_hash() -> None:
    today = config_hash(compose(["+experiment=linreg"]).config)
    assert config_hash(later()) == today
    others = [later(ema=0.9), later(ema=0.0), later(shade=Shade(depth=1, colour="grey"))]
    assert len({today, *map(config_hash, others)}) == 4


def test_a_checkpoint_without_a_newer_key_has_the_value_from_before() -> None:
    state = {"config": plain(compose(["+experiment=linreg"]).config), "data_sha256": "1"}
    refuse_other(state, later(), "1", Path("step_3"))
    with pytest.raises(CheckpointError) as refused:
        refuse_other(state, later(ema=0.9, shade=Shade(depth=2, colour="grey")), "1", Path("step_3"))
    assert [problem.split("; ")[0] for problem in refused.value.problems] == [
        "`ema` must be None as in step_3, got 0.9 in config.yaml",
        "`shade.depth` must be 0 as in step_3, got 2 in config.yaml",
    ]


def test_older_keys_stay_in_the_hash() -> None:
    values = versions.without_newer(Config, hashed(plain(compose(["+experiment=linreg"]).config)))
    assert {"reduction", "chunks", "tensor_parallel"} <= values["strategy"].keys()


def test_the_value_from_before_is_the_value_in_conf() -> None:
    """Otherwise a resumed sweep, which composes its trials again and compares hashes, would take them for different trials."""
    whole = plain(compose([]).config)

    def below(kind: type, values: dict[str, Any]) -> None:
        for name, own in introspection.keys(kind).items():
            if own.before is not parts.ALWAYS and own.changes == "answer":
                assert values[name] == own.before
        for name, hint in introspection.hints(kind).items():
            for variant in introspection.variants(hint).values():
                if isinstance(values.get(name), dict) and values[name].keys() == keys(variant):
                    below(variant, values[name])

    below(Config, whole)
    assert versions.completed(Config, {"strategy": {}}) == {
        "strategy": {}, "metrics": ["rmse", "mae", "r2"], "seeds": None, **{group: whole[group] for group in ("launch", "sweep", "predict")},
    }  # fmt: skip
