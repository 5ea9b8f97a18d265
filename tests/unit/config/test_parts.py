"""Parts and their builders: a missing builder fails with an error, and no part is replaced by another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from runner.config import introspection
from runner.config import schema as c
from runner.config.compose import check, compose
from runner.config.parts import Part, key
from runner.config.schema import plain
from runner.data.dataset import build as build_data
from runner.errors import ConfigError
from runner.models.base import Model
from runner.models.base import build as build_model
from runner.optim.build import build as build_optimizer
from runner.optim.rules import Numbers, Rule, SgdRule
from runner.optim.torch_optim import TorchOptimizer

GROUPS = (c.DataConfig, c.ModelConfig, c.LossConfig, c.OptimizerConfig, c.ScheduleConfig, c.SinkConfig)
HERE = __name__


@pytest.fixture(autouse=True)
def _remove_new_parts() -> Iterator[None]:
    before = {group: dict(group.choices) for group in GROUPS}
    yield
    for group, choices in before.items():
        group.choices.clear()
        group.choices.update(choices)


def doubled(configs: Sequence[Any], numbers: Numbers) -> Rule:
    return SgdRule(None)


def dropped(
    config: Any, feature_names: Sequence[str], target_names: Sequence[str], generator: torch.Generator
) -> Model:
    class Dropped(Model):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(len(feature_names), 1, dtype=torch.float64)
            self.drop = torch.nn.Dropout(0.5)

    return Dropped()


def lion(config: Any, parameters: dict[str, torch.Tensor]) -> TorchOptimizer:
    return TorchOptimizer(torch.optim.SGD(list(parameters.values()), lr=config.lr), parameters)


def parameters() -> dict[str, torch.Tensor]:
    return {"w": torch.nn.Parameter(torch.ones(2))}


def test_every_builder_exists() -> None:
    import pkgutil

    for group in GROUPS:
        for name, part in group.choices.items():
            assert callable(pkgutil.resolve_name(part.builder)), (group, name)
            assert getattr(part, "rule", None) is None or callable(pkgutil.resolve_name(part.rule)), name


def test_a_part_without_a_builder_is_refused_in_its_definition() -> None:
    with pytest.raises(TypeError, match="Web must have both a name and a builder, or neither"):

        @dataclass(frozen=True, kw_only=True)
        class Web(c.DataConfig, name="web"):
            """Rows of a page."""


def test_two_parts_with_one_name_are_refused() -> None:
    with pytest.raises(TypeError, match="Again must have a unique name, got 'mlp' of Mlp"):

        @dataclass(frozen=True, kw_only=True)
        class Again(c.ModelConfig, name="mlp", builder="runner.models.mlp:build"):
            """Another network."""


def test_a_data_source_with_a_missing_builder_is_not_replaced() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Web(c.DataConfig, name="web", builder=f"{HERE}:forgotten"):
        """Rows of a page."""

    values = plain(compose(["+experiment=diabetes"]).config)
    values["data"] = {**values["data"], "name": "web"}
    config = check(values)
    assert isinstance(config.data, Web)
    with pytest.raises(AttributeError, match="forgotten"):
        build_data(config.data, 0, torch.float32, torch.device("cpu"))


def test_a_missing_update_rule_is_not_replaced() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Lion(c.Adam, name="lion", builder=f"{HERE}:lion", rule=f"{HERE}:forgotten"):
        """Signs of momentum."""

    config = Lion(name="lion", lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    with pytest.raises(AttributeError, match="forgotten"):
        build_optimizer(config, "manual", parameters())
    assert isinstance(build_optimizer(config, "optimizer", parameters()), TorchOptimizer)


def test_an_optimizer_without_a_rule_is_refused_for_manual_updates() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Lion(c.Adam, name="lion", builder=f"{HERE}:lion"):
        """Signs of momentum."""

    values = plain(compose(["+experiment=linreg", "optimizer=adam"]).config)
    values["optimizer"] = {**values["optimizer"], "name": "lion"}
    with pytest.raises(ConfigError, match="`update` must be optimizer with `optimizer`=lion"):
        check(values)
    assert isinstance(check({**values, "update": "optimizer"}).optimizer, Lion)


def test_a_model_with_undeclared_dropout_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Dropped(c.ModelConfig, name="dropped", builder=f"{HERE}:dropped"):
        """A line, half the time."""

    with pytest.raises(TypeError, match=r"Dropped\.draws must be True like its model.s, got False"):
        build_model(Dropped(name="dropped", init_from=None), ["x"], ["y"], torch.Generator())


def test_constraints_use_the_properties_of_a_model() -> None:
    """Least squares are refused for every model that draws random numbers, whatever its class."""

    @dataclass(frozen=True, kw_only=True)
    class Dropped(c.ModelConfig, name="dropped", builder=f"{HERE}:dropped"):
        """A line, half the time."""

        rate: float = key("probability of dropout")

        @property
        def draws(self) -> bool:
            return self.rate > 0

    config = compose(["+experiment=linreg", "optimizer=lm", "dtype=float64"]).config
    values = plain(replace(config, model=Dropped(name="dropped", init_from=None, rate=0.5)))
    with pytest.raises(ConfigError, match=r"`model`=dropped must not use dropout with `optimizer`=lm"):
        check(values)


def test_a_new_part_is_a_choice_of_its_group() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Cauchy(c.LossConfig, name="cauchy", builder=f"{HERE}:lion"):
        """Logarithm of squared errors."""

        scale: float = key("scale of the error", above=0)

    assert introspection.variants(c.LossConfig)["cauchy"] is Cauchy
    assert "loss.scale" in set(introspection.paths(c.Config))
    values = plain(compose(["+experiment=linreg"]).config)
    assert isinstance(check({**values, "loss": {"name": "cauchy", "scale": 1}}).loss, Cauchy)
    with pytest.raises(ConfigError, match=r"`loss.scale` must be a finite number above 0"):
        check({**values, "loss": {"name": "cauchy", "scale": 0}})


def test_a_class_of_shared_fields_is_not_a_choice() -> None:
    @dataclass(frozen=True, kw_only=True)
    class _Shared(c.LossConfig):
        """Fields of several losses."""

    assert _Shared not in c.LossConfig.choices.values()
    assert issubclass(_Shared, Part)
