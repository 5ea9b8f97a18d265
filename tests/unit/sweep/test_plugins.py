"""The table of launchers and sweepers: the form in which Hydra takes their settings, and the check of what it composes."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from omegaconf import OmegaConf

from runner.config.hydra_adapter import hydra_session
from runner.errors import ConfigError
from runner.sweep.plugins import PLUGINS, check, read


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["hydra.launcher.per_device=2", "hydra/launcher=pool"], ["hydra/launcher=pool", "hydra.launcher.per_device=2"]),
        (["+hydra/launcher=pool", "++hydra.launcher.devices=[0,1]"], ["hydra/launcher=pool", "hydra.launcher.devices=[0,1]"]),
        (["hydra/launcher=pool", "hydra/launcher=vmap"], ["hydra/launcher=vmap"]),
        (["hydra/launcher=submitit_slurm", "hydra.launcher.additional_parameters.qos=x"], ["hydra/launcher=submitit_slurm", "++hydra.launcher.additional_parameters.qos=x"]),
        (["hydra/launcher=submitit_local", "hydra.launcher.name=mine", "hydra.launcher.submitit_folder=x"], ["hydra/launcher=submitit_local", "hydra.launcher.name=mine", "hydra.launcher.submitit_folder=x"]),
        (["hydra/sweeper=optuna", "hydra.sweeper.metric=[valid/rmse,valid/mae]"], ["hydra/sweeper=optuna", "hydra.sweeper.metric=[valid/rmse,valid/mae]"]),
    ],
)  # fmt: skip
def test_known_settings_are_in_the_form_of_hydra(words: list[str], expected: list[str]) -> None:
    if "submitit" in words[0]:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    assert read(words) == (expected, [])


@pytest.mark.parametrize("name", [f"{kind} {name}" for kind, known in PLUGINS.items() for name in known])
def test_every_entry_is_a_class_of_its_kind(name: str) -> None:
    kind, name = name.split()
    plugin = PLUGINS[kind][name]
    if not plugin.installed:
        pytest.skip(f"{name} is an extra")
    module, _, attribute = plugin.target.rpartition(".")
    base = importlib.import_module(f"hydra.plugins.{kind}")
    assert issubclass(getattr(importlib.import_module(module), attribute), getattr(base, kind.title()))


def composed(**changes: Any) -> Any:
    """Return Hydra's configuration of a sweep with changes that no argument can make. A key has __ for its dots."""
    from hydra.types import RunMode

    with hydra_session() as hydra:
        found = hydra.compose_config("sweep", ["hydra.sweep.dir=x"], RunMode.MULTIRUN)
    OmegaConf.set_struct(found, False)
    for key, value in changes.items():
        OmegaConf.update(found, key.replace("__", "."), value, force_add=True)
    return found


def test_what_the_table_gives_is_accepted() -> None:
    check(composed())


CODE = {"_target_": "os.mkdir", "path": "x"}


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"hydra__launcher": {"_target_": "builtins.open"}}, ["hydra.launcher._target_"]),
        ({"hydra__launcher": {"_target_": PLUGINS["launcher"]["pool"].target}}, ["hydra.launcher._target_"]),
        ({"hydra__launcher": None}, ["hydra.launcher._target_"]),
        ({"hydra__sweeper__x": CODE}, ["hydra.sweeper.x._target_"]),
        ({"hydra__sweeper__x": "${oc.create:'{_target_: os.mkdir}'}"}, ["hydra.sweeper.x._target_"]),
        ({"hydra__sweeper__x": "${oc.decode:'{_target_:os.mkdir}'}"}, ["hydra.sweeper.x._target_"]),
        ({"hydra__sweeper__x": "${y}", "y": [CODE]}, ["hydra.sweeper.x.0._target_", "y.0._target_"]),
        ({"hydra__callbacks__x": {"y": 1}}, ["hydra.callbacks.x"]),
        ({"hydra__job_logging__x": {"()": "os.mkdir"}}, ["hydra.job_logging.x.()"]),
        ({"model__x": CODE}, ["model.x._target_"]),
        ({"x": {"_partial_": True}}, ["x._partial_"]),
    ],
    ids=str,
)
def test_anything_else_is_refused_before_it_is_instantiated(changes: dict[str, Any], keys: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check(composed(**changes))
    assert [problem.split("`")[1] for problem in caught.value.problems] == keys
