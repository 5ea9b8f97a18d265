"""Sources of values: for every experiment with several sets of overrides, and for each way to set a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from runner.commands.explain.explanation import Value, as_yaml, explain
from runner.commands.explain.output import text
from runner.commands.explain.sources import Assignment
from runner.config import introspection, overrides
from runner.config.compose import compose
from runner.config.hydra_adapter import CONF, options
from runner.config.schema import Config, plain
from runner.errors import CheckpointError, ConfigError

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes a file below an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return file


def value(key: str, *arguments: str, config_dir: str | None = None, base: str | None = None) -> Value:
    (result,) = (v for v in explain(arguments, config_dir, base).values if v.key == key)
    return result


def places(key: str, *arguments: str, config_dir: str | None = None, base: str | None = None) -> list[tuple[Any, str]]:
    """Return value and place of each assignment of a key; the last one is in effect."""
    return [(s.value, s.place) for s in value(key, *arguments, config_dir=config_dir, base=base).assignments]


def place_of(start: str) -> str:
    """Return the place of the line in conf/config.yaml that starts with this text."""
    lines = (CONF / "config.yaml").read_text(encoding="utf-8").splitlines()
    (number,) = (number for number, line in enumerate(lines, 1) if line.strip().startswith(start))
    return f"conf/config.yaml:{number}"


def choices(group: str, *arguments: str, config_dir: str | None = None) -> list[tuple[Any, str]]:
    return [(s.value, s.place) for s in explain(arguments, config_dir).choices[group]]


# -------------------------------------------------------------------------------------------- all values of all experiments


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, entry in values.items():
        if isinstance(entry, dict) and entry:
            yield from leaves(entry, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", entry


def written(assignment: Assignment) -> Any:
    """Return the value that the line of an assignment gives its key, when that line is read alone."""
    assert assignment.line is not None
    file = CONF / assignment.source.removeprefix("conf/")
    line = file.read_text(encoding="utf-8").splitlines()[assignment.line - 1]
    values: Any = OmegaConf.to_container(OmegaConf.create(line.strip()))
    name = assignment.key.rpartition(".")[2]
    return values[name] if name in values else next(iter(values.values()))[name]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["seed=3", "optimizer=adam", "optimizer.lr=0.1", "dtype=float64", "data.split.test=3"],
        ["model=mlp", "optimizer=adam", "schedule=cosine", "update=optimizer"],
        [
            "data=csv",
            "data.path=x.csv",
            "data.target=y",
            "data.features=[a,b]",
            "device=cpu",
            "data.standardize=false",
            "train.epochs=3",
        ],
        [
            "model=formula",
            "model.expression=a*x + w",
            "model.start={a: 1}",
            "data=curve",
            "data.standardize=false",
            "data.numbers=null",
            "data.target_scale=null",
        ],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("experiment", [None, *options()["experiment"]])
def test_every_value_is_the_composed_one_and_is_written_at_its_place(
    experiment: str | None, arguments: list[str]
) -> None:
    arguments = [*arguments, *([f"+experiment={experiment}"] if experiment else [])]
    explanation, composed = explain(arguments), compose(arguments)
    given = overrides.values_of(arguments)
    assert {v.key: v.value for v in explanation.values} == dict(leaves(plain(composed.config)))
    assert explanation.notices == composed.notices
    for result in explanation.values:
        last = result.assignments[-1]
        assert last.value == result.value
        for assignment in result.assignments:
            if assignment.line is None:
                assert assignment.source in arguments
            else:
                assert written(assignment) == assignment.value
        overridden = any(name == result.key or result.key.startswith(f"{name}.") for name in given if "." in name)
        assert (last.line is None) == (overridden or result.key in given or result.key in also_set(given))
    for group, assigned in explanation.choices.items():
        if group in introspection.hints(Config) and group not in (
            "launch",
            "train",
            "checkpoint",
            "record",
            "sweep",
            "predict",
        ):
            assert assigned[-1].value == getattr(composed.config, group).name


def also_set(given: Mapping[str, Any]) -> list[str]:
    """Return the other one of steps and epochs, which is set to null."""
    return ["train.epochs"] * ("train.steps" in given) + ["train.steps"] * ("train.epochs" in given)


# ------------------------------------------------------------------------------------------------ each way to set a value


def test_a_value_of_an_option() -> None:
    assert places("optimizer.lr") == [(1e-3, "conf/optimizer/sgd.yaml:3")]
    assert places("data.split.order") == [("random", "conf/data/_shared.yaml:10")]
    assert places("seed") == [(0, place_of("seed:"))]


def test_an_experiment_overrides_an_option_and_the_command_line_overrides_both() -> None:
    assert places("optimizer.lr", "+experiment=linreg", "optimizer.lr=0.1") == [
        (1e-3, "conf/optimizer/sgd.yaml:3"),
        (1e-4, "conf/experiment/linreg.yaml:23"),
        (0.1, "command line: optimizer.lr=0.1"),
    ]


def test_the_last_of_two_overrides_of_a_key_counts() -> None:
    assert places("seed", "seed=1", "++seed=2")[-1] == (2, "command line: ++seed=2")


def test_a_value_kept_from_the_experiment_has_its_place() -> None:
    result = explain(["+experiment=curve_fit", "optimizer=adam", "update=optimizer"])
    assert [v.assignments[-1].place for v in result.values if v.key == "optimizer.lr"] == [
        "conf/experiment/curve_fit.yaml:22"
    ]
    assert result.notices == ("kept from the experiment: `optimizer.lr`=0.01 (adam: 0.001)",)


def test_a_key_that_is_left_out_gives_a_notice() -> None:
    result = explain(["+experiment=linreg", "model=mlp"])
    assert [v.key for v in result.values if v.key.startswith("model.")] == [
        "model.name",
        "model.init_from",
        "model.widths",
        "model.activation",
        "model.dropout",
        "model.embedding_size",
    ]
    assert result.notices == ("`model.init` of the experiment left out: mlp has no such key",)


def test_epochs_on_the_command_line_set_steps_to_null() -> None:
    assert places("train.steps", "+experiment=linreg", "train.epochs=3") == [
        (1000, "conf/train/default.yaml:2"),
        (2000, "conf/experiment/linreg.yaml:25"),
        (None, "command line: train.epochs=3"),
    ]


def test_each_start_value_has_its_own_place() -> None:
    arguments = ["+experiment=curve_fit", "model.expression=w*x + b"]
    assert places("model.start.w", *arguments, "model.start.b=2") == [(0.0, "conf/experiment/curve_fit.yaml:20")]
    assert places("model.start.b", *arguments, "model.start.b=2") == [(2, "command line: model.start.b=2")]
    assert places("model.start.b", *arguments, "model.start={b: 2}") == [(2, "command line: model.start={b: 2}")]
    assert places("model.start", *arguments, "model.start={}") == [
        ({}, "conf/model/formula.yaml:8"),
        ({"w": 0.0}, "conf/experiment/curve_fit.yaml:20"),
        ({}, "command line: model.start={}"),
    ]
    assert places("model.start", "model=formula") == [({}, "conf/model/formula.yaml:8")]


def test_a_required_value_has_no_earlier_assignment() -> None:
    assert places("data.path", "data=csv", "data.path=007", "data.target=y") == [("007", "command line: data.path=007")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [("sgd", place_of("- optimizer:"))]),
        (["+experiment=mlp"], [("sgd", place_of("- optimizer:")), ("adam", "conf/experiment/mlp.yaml:6")]),
        (
            ["+experiment=mlp", "optimizer=lbfgs"],
            [
                ("sgd", place_of("- optimizer:")),
                ("adam", "conf/experiment/mlp.yaml:6"),
                ("lbfgs", "command line: optimizer=lbfgs"),
            ],
        ),
    ],
)
def test_the_choices_of_an_option(arguments: list[str], expected: list[tuple[str, str]]) -> None:
    assert choices("optimizer", *arguments) == expected


def test_the_experiment_is_a_choice() -> None:
    assert choices("experiment", "experiment=mlp") == [("mlp", "command line: experiment=mlp")]
    assert "experiment" not in explain([]).choices


def test_meaning_and_unit_are_those_of_the_schema() -> None:
    result = value("schedule.every_steps", "schedule=step")
    assert (result.meaning, result.unit) == ("steps between two reductions", "steps")
    assert value("model.start.a", "model=formula", "model.start={a: 1}").meaning == (
        "initial value of each parameter; the others are drawn as init says"
    )


@pytest.mark.parametrize(
    ("key", "arguments", "at_start"),
    [
        ("device.name", [], "an accelerator if torch finds one, else cpu; `python -m runner doctor` shows which"),
        ("device.name", ["device=cpu"], None),
        ("device.threads", ["strategy.reduction=exact"], "1, so that the bits do not depend on the number of cores"),
        ("device.threads", ["strategy.reduction=exact", "device.threads=2"], None),
        ("device.threads", [], None),
        ("strategy.name", [], "single on one process, ddp on more"),
        ("strategy.name", ["strategy=ddp"], "single, unless torchrun starts more processes"),
        ("strategy.name", ["strategy=ddp", "launch.processes=2"], None),
        ("strategy.name", ["strategy=dp"], "single if fewer than two GPUs are visible"),
        ("run_dir", [], "a new directory runs/<name>/<stamp>"),
        ("run_dir", ["run_dir=here"], None),
    ],
)
def test_values_that_the_start_of_a_run_chooses(key: str, arguments: list[str], at_start: str | None) -> None:
    assert value(key, *arguments).at_start == at_start


# -------------------------------------------------------------------------------------------------- references and files


def test_a_reference_is_shown_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE", "0.25")
    result = value("optimizer.lr", "optimizer.lr=${oc.decode:${oc.env:RATE}}")
    assert (result.value, result.reference) == (0.25, "${oc.decode:${oc.env:RATE}}")
    assert "    written as ${oc.decode:${oc.env:RATE}}\n" in text(explain(["optimizer.lr=${oc.decode:${oc.env:RATE}}"]))
    assert value("optimizer.lr").reference is None


def test_a_config_dir(write: Write) -> None:
    write("mine/optimizer/slow.yaml", "# Slowly.\ndefaults:\n  - sgd\n  - _self_\n\nlr: 1e-6\n")
    write(
        "mine/experiment/base.yaml",
        "# @package _global_\ndefaults:\n  - override /optimizer: adam\n  - override /model: mlp\nname: base\nseed: 5\n",
    )
    write(
        "mine/experiment/trial.yaml",
        "# @package _global_\ndefaults:\n  - base\n  - _self_\n  - override /optimizer: slow\nname: trial\n"
        "model:\n  widths: ['${seed}', 8]\n",
    )
    arguments = ["+experiment=trial"]
    assert places("optimizer.lr", *arguments, config_dir="mine") == [
        (1e-3, "conf/optimizer/sgd.yaml:3"),
        (1e-6, "mine/optimizer/slow.yaml:6"),
    ]
    assert places("name", *arguments, config_dir="mine/") == [
        ("run", place_of("name:")),
        ("base", "mine/experiment/base.yaml:5"),
        ("trial", "mine/experiment/trial.yaml:6"),
    ]
    assert choices("optimizer", *arguments, config_dir="mine") == [
        ("sgd", place_of("- optimizer:")),
        ("adam", "mine/experiment/base.yaml:3"),
        ("slow", "mine/experiment/trial.yaml:5"),
    ]
    widths = value("model.widths", *arguments, config_dir="mine")
    assert (widths.value, widths.reference) == ([5, 8], "[${seed}, 8]")
    assert widths.assignments[-1].place == "mine/experiment/trial.yaml:8"


def test_the_choice_of_the_outer_file_counts(write: Write) -> None:
    write("mine/experiment/base.yaml", "# @package _global_\ndefaults:\n  - override /optimizer: adam\nseed: 5\n")
    write(
        "mine/experiment/outer.yaml",
        "# @package _global_\ndefaults:\n  - _self_\n  - base\n  - override /optimizer: momentum\nseed: 6\n",
    )
    assert compose(["+experiment=outer"], "mine").config.optimizer.name == "momentum"
    assert choices("optimizer", "+experiment=outer", config_dir="mine") == [
        ("sgd", place_of("- optimizer:")),
        ("adam", "mine/experiment/base.yaml:3"),
        ("momentum", "mine/experiment/outer.yaml:5"),
    ]


def test_the_values_of_a_file_may_be_merged_before_those_of_its_defaults(write: Write) -> None:
    write("mine/experiment/base.yaml", "# @package _global_\nseed: 5\n")
    write("mine/experiment/first.yaml", "# @package _global_\nseed: 6\ndefaults:\n  - _self_\n  - base\n")
    assert places("seed", "+experiment=first", config_dir="mine") == [
        (0, place_of("seed:")),
        (6, "mine/experiment/first.yaml:2"),
        (5, "mine/experiment/base.yaml:2"),
    ]


def test_a_yaml_merge_key_has_the_line_it_is_written_on(write: Write) -> None:
    write(
        "mine/experiment/merged.yaml",
        "# @package _global_\ntrain: &length\n  steps: 7\nrecord:\n  every_steps: 3\n"
        "checkpoint:\n  <<: {every_steps: 2}\n  keep: 1\n",
    )
    result = {
        key: places(key, "+experiment=merged", config_dir="mine")[-1]
        for key in ("train.steps", "checkpoint.every_steps", "checkpoint.keep")
    }
    assert result == {
        "train.steps": (7, "mine/experiment/merged.yaml:3"),
        "checkpoint.every_steps": (2, "mine/experiment/merged.yaml:7"),
        "checkpoint.keep": (1, "mine/experiment/merged.yaml:8"),
    }


def test_keys_of_a_group_that_is_a_reference(write: Write) -> None:
    write(
        "mine/experiment/same.yaml",
        "# @package _global_\ntrain:\n  early_stopping: '${oc.create:{metric: rmse, patience: 2, min_delta: 0.5}}'\n"
        "  eval_every_steps: 1\n",
    )
    result = value("train.early_stopping.metric", "+experiment=same", config_dir="mine")
    assert (result.value, result.assignments[-1].place) == ("rmse", "mine/experiment/same.yaml:3")
    assert result.reference == "${oc.create:{metric: rmse, patience: 2, min_delta: 0.5}}"


def test_empty_files_and_odd_keys_are_accepted(write: Write) -> None:
    write("mine/model/empty.yaml", "# Nothing yet.\n")
    write("mine/experiment/odd.yaml", "# @package _global_\nmodel:\n  start: {on: 1.0}\n  init: normal\n")
    result = explain(["+experiment=odd", "model=mlp"], "mine")
    assert result.notices == ("`model.start`, `model.init` of the experiment left out: mlp has no such key",)
    write("mine/study/none.yaml", "# @package _global_\n")
    assert places("seed", "study=none", config_dir="mine") == [(0, place_of("seed:"))]
    assert choices("study", "study=none", config_dir="mine") == [("none", "command line: study=none")]


# -------------------------------------------------------------------------------------------------------- saved runs


@pytest.fixture
def run(write: Write) -> dict[str, int]:
    """Write the configuration of a run to the folder `before`; return dotted key -> line of config.yaml."""
    config = plain(compose(["+experiment=linreg", "device=cpu", "strategy=single", "run_dir=before"]).config)
    file = write("before/config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    lines = file.read_text(encoding="utf-8").splitlines()
    return {"seed": lines.index("seed: 0") + 1, "strategy.name": lines.index("  name: single") + 1}


def test_a_resumed_run(run: dict[str, int]) -> None:
    assert places("seed", "resume=before") == [(0, f"before/config.yaml:{run['seed']}")]
    assert places("train.steps", "resume=before", "train.steps=5000")[-1] == (5000, "command line: train.steps=5000")
    assert places("strategy.name", "resume=before") == [
        ("single", f"before/config.yaml:{run['strategy.name']}"),
        ("auto", "command line: resume=before"),
    ]
    assert places("device.name", "resume=before", "device=auto")[-1] == ("auto", "conf/device/auto.yaml:6")
    assert explain(["resume=before", "device=auto"]).choices == {
        "device": (Assignment("device", "auto", "device=auto"),)
    }
    assert explain(["resume=before"]).choices == {}


def test_a_repeated_run(run: dict[str, int]) -> None:
    assert places("run_dir", base="before")[-1] == (None, "command line: rerun before")
    assert places("seed", "seed=4", base="before") == [
        (0, f"before/config.yaml:{run['seed']}"),
        (4, "command line: seed=4"),
    ]
    assert places("optimizer.lr", "optimizer=adam", base="before")[-1] == (1e-3, "conf/optimizer/adam.yaml:3")


def test_a_missing_run() -> None:
    with pytest.raises(CheckpointError) as refused:
        explain(["resume=nowhere"])
    assert refused.value.problems == (
        "`resume` must be a run directory, got 'nowhere', which is not a directory; correct the path",
    )


# --------------------------------------------------------------------------------------------------- selected keys, and errors


def test_selected_keys_and_groups() -> None:
    result = explain(["+experiment=linreg"], only=["data.split", "loss", "seed"])
    assert [v.key for v in result.values] == [
        "seed",
        "data.split.test",
        "data.split.valid",
        "data.split.order",
        "data.split.calibrate",
        "data.split.column",
        "data.split.group",
        "data.split.stratify",
        "data.split.folds",
        "data.split.fold",
        "loss.name",
    ]
    assert list(result.choices) == ["data", "loss"]


def test_one_selected_entry_of_a_mapping() -> None:
    result = explain(["+experiment=curve_fit"], only=["model.start.w"])
    assert [v.key for v in result.values] == ["model.start.w"]
    assert explain(["+experiment=curve_fit"], only=["model.start"]).values == result.values


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        explain(["seed=x", "optimizer.lrr=1"], only=["optimzer", "data.niose", "linreg", "???"])
    assert refused.value.problems == (
        "`optimzer` is not a key; did you mean `optimizer`?",
        "`data.niose` is not a key; did you mean `data.noise`?",
        "`linreg` is not a key; did you mean +experiment=linreg?",
        "`???` is not a key; see docs/config.md for the list of keys",
        "`optimizer.lrr` is not a key; did you mean `optimizer.lr`?",
        "`seed` must be an integer from 0 to 4294967295, got 'x'",
    )


@pytest.mark.parametrize(("name", "chosen"), [("model.widths", "linear"), ("model.start.a", "linear")])
def test_a_key_of_another_option_is_not_called_misspelt(name: str, chosen: str) -> None:
    with pytest.raises(ConfigError) as refused:
        explain([], only=[name])
    assert refused.value.problems == (
        f"`{name}` has no value, because `model` is {chosen}; use `explain model` to see the keys of {chosen}",
    )


# ------------------------------------------------------------------------------------------------------------- text output


def test_values_are_shown_as_yaml() -> None:
    values = [None, True, 1e-4, "off", "", [1, None, "a"], {"a": 1.0, "b": None}, [], {}]
    assert [as_yaml(v) for v in values] == [
        "null", "true", "0.0001", "off", "''", "[1, null, a]", "{a: 1.0, b: null}", "[]", "{}",
    ]  # fmt: skip
    assert [yaml.safe_load(as_yaml(v)) for v in values if v != "off"] == [v for v in values if v != "off"]


def test_explanation_as_text() -> None:
    result = explain(["+experiment=linreg", "model=mlp", "data.noise=1"], only=["data.noise", "device.name", "name"])
    assert text(result) == (
        "name = linreg       conf/experiment/linreg.yaml:8\n"
        "    name of the experiment and of the folder of its runs\n"
        f"    before: run, {place_of('name:')}\n"
        "\n"
        f"device=auto         {place_of('- device:')}\n"
        "device.name = auto  conf/device/auto.yaml:6\n"
        "    kind of device; auto uses an accelerator if one is available\n"
        "    at the start of the run: an accelerator if torch finds one, else cpu; `python -m runner doctor` shows which\n"
        "\n"
        "data=line           conf/experiment/linreg.yaml:4\n"
        f"    before: line, {place_of('- data:')}\n"
        "data.noise = 1.0    command line: data.noise=1\n"
        "    scale of the noise added to the target [target units]\n"
        "    before: 10.0, conf/experiment/linreg.yaml:16\n"
        "    before: 10.0, conf/data/line.yaml:13\n"
        "warning: `model.init` of the experiment left out: mlp has no such key\n"
    )
