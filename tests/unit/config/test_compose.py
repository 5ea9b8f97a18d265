"""From arguments to a configuration: options, experiments, a user's folder, and resumed or repeated runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml

from runner.config import hydra_adapter
from runner.config import schema as c
from runner.config.compose import check, compose
from runner.config.hydra_adapter import options
from runner.config.resume import saved_values
from runner.config.schema import Config, plain
from runner.errors import CheckpointError, ConfigError

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write `mine/<name>.yaml` in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def file(name: str, text: str) -> Path:
        path = tmp_path / "mine" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return file


def config(*arguments: str, config_dir: str | None = None) -> Config:
    return compose(arguments, config_dir).config


def problems(*arguments: str, config_dir: str | None = None, base: str | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        compose(arguments, config_dir, base)
    return refused.value.problems


# ------------------------------------------------------------------------------------------- options and experiments


def test_the_arguments_are_kept() -> None:
    assert compose(["experiment=linreg", "seed=3"]).overrides == ("experiment=linreg", "seed=3")


def test_the_plus_of_an_experiment_is_optional() -> None:
    assert config("experiment=linreg") == config("+experiment=linreg") == config("++experiment=linreg")


def test_the_command_line_overrides_the_experiment() -> None:
    found = config("optimizer.lr=0.5", "+experiment=linreg", "train.epochs=3")
    assert (found.optimizer.lr, found.train.steps, found.train.epochs) == (0.5, None, 3)


def test_an_option_overrides_the_experiment_and_drops_keys_that_it_does_not_have() -> None:
    composed = compose(["+experiment=linreg", "model=mlp"])
    assert composed.config.model == config("model=mlp").model
    assert composed.notices == ("`model.init` of the experiment left out: mlp has no such key",)


def test_another_data_source_keeps_the_keys_that_both_have() -> None:
    composed = compose(["+experiment=linreg", "data=csv", "data.path=x.csv", "data.target=y"])
    assert isinstance(composed.config.data, c.Csv)
    split = composed.config.data.split
    assert (split.test, split.valid, split.order) == (10, 0, "sequential")
    assert composed.notices == (
        "`data.rows`, `data.start`, `data.stop`, `data.slope`, `data.intercept`, `data.noise` "
        "of the experiment left out: csv has no such key",
        "kept from the experiment: `data.split.test`=10 (csv: 0), `data.split.order`=sequential (csv: random)",
    )


def test_a_key_on_the_command_line_is_not_dropped() -> None:
    assert problems("+experiment=linreg", "model=mlp", "model.init=normal") == (
        "`model.init` is not a key of mlp, which has init_from, widths, activation, dropout, embedding_size; remove it",
    )


@pytest.mark.parametrize("experiment", options()["experiment"])
@pytest.mark.parametrize("model", options()["model"])
def test_every_experiment_composes_with_every_model_and_other_data(experiment: str, model: str) -> None:
    data = "line" if experiment in ("mlp", "diabetes") else "diabetes"
    found = config(
        f"+experiment={experiment}",
        f"model={model}",
        f"data={data}",
        "data.standardize=false",
        "data.numbers=null",
        "data.target_scale=null",
        *(["model.target=my_lab.nets:Net"] if model == "custom" else []),
    )
    assert (found.model.name, found.data.name) == (model, data)


def test_an_optimizer_replaces_that_of_the_experiment() -> None:
    composed = compose(["+experiment=curve_fit", "optimizer=adam", "update=optimizer"])
    assert isinstance(composed.config.optimizer, c.Adam)
    assert composed.notices == ("kept from the experiment: `optimizer.lr`=0.01 (adam: 0.001)",)


def test_start_values_are_replaced_and_not_merged() -> None:
    def start(*arguments: str) -> dict[str, float]:
        model = config("+experiment=curve_fit", "model.expression=w*x + b", *arguments).model
        assert isinstance(model, c.Formula)
        return model.start

    assert start() == {"w": 0.0}
    assert start("model.start={b: 2}") == {"b": 2.0}
    assert start("model.start={}") == {}
    assert start("model.start.b=2") == {"w": 0.0, "b": 2.0}


def test_references_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE", "0.25")
    found = config("optimizer.lr=${oc.decode:${oc.env:RATE}}", "name=run_${seed}", "seed=7")
    assert (found.optimizer.lr, found.name) == (0.25, "run_7")


def test_a_dumped_configuration_is_read_back() -> None:
    found = config("+experiment=mlp", "model.widths=[3]", "device=cpu")
    assert check(yaml.safe_load(yaml.safe_dump(plain(found)))) == found


def test_a_number_from_the_environment_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice is given where it solves the problem, and only there."""
    for name, text in {"RATE": "0.25", "WIDTHS": "[8,8]", "WORD": "x"}.items():
        monkeypatch.setenv(name, text)
    arguments = ["model=mlp", "optimizer.lr=${oc.env:RATE}", "model.widths=${oc.env:WIDTHS}", "data.noise=${oc.env:WORD}", "train.steps=${oc.env:RATE}"]  # fmt: skip
    advice = "; an environment variable is a string until it is decoded: write "
    assert problems(*arguments) == (
        "`data.noise` must be a finite number of at least 0, got 'x'",
        "`model.widths` must be a list, each item an integer of at least 1, got '[8,8]'"
        + advice
        + "model.widths='${oc.decode:${oc.env:WIDTHS}}'",
        "`optimizer.lr` must be a finite number from 0 to 1e+38, got '0.25'"
        + advice
        + "optimizer.lr='${oc.decode:${oc.env:RATE}}'",
        "`train.steps` must be an integer of at least 1 or null, got '0.25'",
    )
    decoded = config("model=mlp", *(f"{key}=${{oc.decode:${{oc.env:{name}}}}}" for key, name in (("optimizer.lr", "RATE"), ("model.widths", "WIDTHS"))))  # fmt: skip
    assert isinstance(decoded.model, c.Mlp)
    assert (decoded.optimizer.lr, decoded.model.widths) == (0.25, (8, 8))


def test_composition_restores_the_state_of_hydra(write: Write) -> None:
    """With a folder of the user, because Hydra composes those options anew each time."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from runner.config.hydra_adapter import CONF

    folder = str(write("experiment/own", "# @package _global_\nseed: 4\n").parents[1])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert config("+experiment=own", config_dir=folder).seed == 4
        assert hydra_compose("config", ["seed=5"]).seed == 5
    assert not GlobalHydra.instance().is_initialized()


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy of the built-in files, from which options are composed."""
    folder = Path(shutil.copytree(hydra_adapter.CONF, tmp_path / "conf"))
    monkeypatch.setattr(hydra_adapter, "CONF", folder)
    return folder


def mlp_of(found: Config) -> tuple[tuple[int, ...], float]:
    """Return widths and dropout of the network of a configuration."""
    assert isinstance(found.model, c.Mlp)
    return tuple(found.model.widths), found.model.dropout


def test_built_in_options_are_merged_once_and_by_every_choice(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merged, real = list[list[str]](), hydra.compose

    def compose(name: str, arguments: list[str], **options: Any) -> Any:
        merged.append(arguments)
        return real(name, arguments, **options)

    monkeypatch.setattr(hydra, "compose", compose)
    first = config("model=mlp", "model.widths=[3]", "model.dropout=0.5", "optimizer.lr=0.25", "seed=5")
    second, third = config("model=mlp"), config("optimizer=sgd", "model=mlp", "seed=6")
    assert merged == [["model=mlp"], ["optimizer=sgd", "model=mlp"]]
    shown = [(mlp_of(found), found.optimizer.lr, found.seed) for found in (first, second, third)]
    assert shown == [(((3,), 0.5), 0.25, 5), (((64, 64), 0.0), 0.001, 0), (((64, 64), 0.0), 0.001, 6)]


def test_a_built_in_file_that_has_changed_is_read_again(conf: Path) -> None:
    assert mlp_of(config("model=mlp")) == ((64, 64), 0.0)
    file = conf / "model/mlp.yaml"
    file.write_text(file.read_text().replace("[64, 64]", "[5]"))
    assert mlp_of(config("model=mlp")) == ((5,), 0.0)


# ------------------------------------------------------------------------------------------------------- all problems


def test_wrong_arguments_keys_options_and_values_are_reported_together() -> None:
    assert [p.split("`")[1] for p in problems("lrr=3", "seed=-1", "train.steps=abc", "foo", "model=nope")] == [
        "lrr",
        "foo",
        "model",
        "seed",
        "train.steps",
    ]


def test_the_keys_of_an_unknown_option_are_not_checked() -> None:
    assert len(problems("model=nope", "model.widths=[0]", "model.bias=3")) == 1
    assert len(problems("+experiment=nope", "model.widths=[0]")) == 1


def test_unresolved_references_are_reported_with_the_other_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOPE", raising=False)
    arguments = ["name=${nope}", "optimizer.lr=${oc.env:NOPE}", "dtype=${dtype}", "seed=-1", "data=csv", "data.features=[a,${nope}]"]  # fmt: skip
    assert set(problems(*arguments)) == {
        "`name` cannot be resolved: Interpolation key 'nope' not found; correct the reference, or give a value",
        "`dtype` cannot be resolved: Recursive interpolation detected; correct the reference, or give a value",
        "`data.features[1]` cannot be resolved: Interpolation key 'nope' not found; correct the reference, or give a value",
        "`optimizer.lr` cannot be resolved: \"Environment variable 'NOPE' not found\"; correct the reference, or give a value",
        "`seed` must be an integer from 0 to 4294967295, got -1",
        "`data.path` is missing; give a string with data.path=…",
        "`data.target` is missing; give a string, or a list, each item a string with data.target=…",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["name=${run_dir}", "run_dir=${name}"],
        ["seed=${train.steps}", "train.steps=${train.accumulate}", "train.accumulate=${seed}"],
        ["name=${name}", "run_dir=${name}/a", "dtype=${run_dir}"],
    ],
)
def test_a_circle_of_references_is_one_problem(arguments: list[str]) -> None:
    (problem,) = problems(*arguments)
    assert problem.endswith("Recursive interpolation detected; correct the reference, or give a value")


# -------------------------------------------------------------------------------------------------------- user folder


def test_a_users_experiment_and_option(write: Write) -> None:
    write("experiment/mine", "# @package _global_\n# Mine.\ndefaults:\n  - override /model: tiny\nname: mine\n")
    write("model/tiny", "# Tiny.\nname: mlp\nwidths: [2]\nactivation: tanh\ndropout: 0\nembedding_size: null\n")
    found = config("+experiment=mine", "model.dropout=0.5", config_dir="mine")
    assert (found.name, found.model) == (
        "mine",
        c.Mlp(name="mlp", init_from=None, widths=(2,), activation="tanh", dropout=0.5, embedding_size=None),
    )
    assert options("mine")["experiment"] == options()["experiment"] | {"mine": "Mine."}


def test_a_users_option_may_extend_a_built_in_one(write: Write) -> None:
    write("data/short", "# Short.\ndefaults: [line, _self_]\nrows: 3\n")
    data = config("data=short", config_dir="mine").data
    assert isinstance(data, c.Line)
    assert data.rows == 3


def test_a_group_of_the_user(write: Write) -> None:
    write("study/fast", "# @package _global_\n# Fast.\ntrain:\n  steps: 3\n")
    assert config("study=fast", config_dir="mine").train.steps == 3
    assert config("+experiment=linreg", "+study=fast", config_dir="mine").train.steps == 3


@pytest.mark.parametrize("folder", ["with space", "größe's", "a=b,c", "100%", "#1"])
def test_the_users_folder_may_have_any_name(folder: str, tmp_path: Path, write: Write) -> None:
    write("experiment/mine", "# @package _global_\nname: mine\n").parent.parent.rename(tmp_path / folder)
    assert config("experiment=mine", config_dir=folder).name == "mine"


def test_a_file_hidden_by_a_built_in_option_is_refused(write: Write) -> None:
    write("experiment/linreg", "# @package _global_\n# Mine.\nseed: 5\n")
    assert options("mine") == options()
    assert problems("+experiment=linreg", config_dir="mine") == (
        "mine/experiment/linreg.yaml is hidden by the built-in `experiment`=linreg; rename your file",
    )
    assert config("+experiment=mlp", config_dir="mine").name == "mlp"


GLOBAL = "# @package _global_\n"
MISPLACED = (
    "{file} must declare that its keys belong to the whole configuration; write `# @package _global_` as its first line"
)


@pytest.mark.parametrize(
    ("text", "excerpts"),
    [
        ("", [MISPLACED]),
        ("seed: 3\n", [MISPLACED]),
        ("- a\n", [MISPLACED]),
        (GLOBAL + "- a\n", ["the configuration cannot be read: In 'experiment/bad': ", "Cannot merge DictConfig with ListConfig"]),
        (GLOBAL + "seed: 1\nseed: 2\n", ["{file}: line 3: `seed` is given twice; remove one of them"]),
        (GLOBAL + "train:\n\tsteps: 3\n", ["the configuration cannot be read: ", "'\\t' that cannot start any token", '{path}", line 3']),
        (GLOBAL + 'name: "open\n', ["the configuration cannot be read: ", "quoted scalar", '{path}", line 2']),
        (GLOBAL + "name: !!python/object/apply:os.system [touch marker]\n", ["{file}: line 2: `name` has the type tag:yaml.org,2002:python/object/apply:os.system"]),
        (GLOBAL + "name: !!python/name:os.system\n", ["{file}: line 2: `name` has the type tag:yaml.org,2002:python/name:os.system"]),
        (GLOBAL + "dtype: !!set {a, b}\n", ["{file}: line 2: `dtype` has the type tag:yaml.org,2002:set; use a text, a number, a list or a mapping"]),
        (GLOBAL + "defaults: 3\n", ["defaults must be a list"]),
        (GLOBAL + "defaults:\n  - override /optimizer: nope\n", ["Could not find 'optimizer/nope' Available options in 'optimizer': adam adamw custom lbfgs lm lstsq momentum sgd"]),
        (GLOBAL + "defaults:\n  - /optimizer: adam\n", ["Multiple values for optimizer"]),
        (GLOBAL + "model: [1]\n", ["Cannot merge DictConfig with ListConfig"]),
        (GLOBAL + "hydra:\n  searchpath: [file:///]\n", ["{file} must not have `hydra:` (line 2)"]),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_refused(text: str, excerpts: list[str], write: Write, tmp_path: Path) -> None:
    path = write("experiment/bad", text)
    (problem,) = problems("+experiment=bad", config_dir="mine")
    for excerpt in excerpts:
        assert excerpt.format(path=path, file="mine/experiment/bad.yaml") in problem
    assert "\n" not in problem
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_a_list_in_place_of_keys_is_refused(write: Write) -> None:
    write("model/bad", "- a\n")
    assert problems("model=bad", config_dir="mine") == (
        "`model` must be a group of keys, got ['a']; write its keys below it",
    )


def test_a_file_that_is_not_utf8_is_refused(write: Write) -> None:
    write("experiment/bad", "").write_bytes(b"\xff\xfe# x")
    (problem,) = problems("+experiment=bad", config_dir="mine")
    assert problem == "mine/experiment/bad.yaml: it is not UTF-8 (invalid start byte at byte 0); save it as UTF-8"
    assert options("mine")["experiment"]["bad"] == ""


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("name: no\ndtype: 010\n", ["`name` must be a string that matches [A-Za-z0-9][A-Za-z0-9._-]{0,99}, got false; put it in quotes, because YAML reads yes, no, on and off as booleans", "`dtype` must be one of float64, float32, bfloat16, float16, got 8"]),
        ("name: 12:30:45\n", ["`name` must be a string that matches [A-Za-z0-9][A-Za-z0-9._-]{0,99}, got 45045; put it in quotes"]),
        ("train:\n", ["`train` must be a group of keys, got null; write its keys below it"]),
        ("train: 3\n", ["`train` must be a group of keys, got 3; write its keys below it"]),
        ("model: mlp\n", ["`model` must be a group of keys, got 'mlp'; write its keys below it"]),
        ("model: {name: [1]}\n", ["`model.name` must be one of linear, polynomial, mlp, custom, formula, got [1]"]),
        ("data: ${model}\n", ["`data.name` must be one of line, curve, csv, parquet, custom, diabetes, got 'linear'; did you mean line?"]),
        ("train: {epochs: 3}\n", ["`train.steps` and `train.epochs` must be one number and one null; set exactly one of them"]),
        ("optimizer: {lrr: 1, lr: -1}\nstray: 2\n1: 3\n", ["`stray` is not a key; did you mean `strategy`?", "`1` is not a key; see docs/config.md for the list of keys", "`optimizer.lrr` is not a key; did you mean `optimizer.lr`?", "`optimizer.lr` must be a finite number from 0 to 1e+38, got -1"]),
    ],
)  # fmt: skip
def test_wrong_keys_and_values_in_a_file_are_refused(text: str, messages: list[str], write: Write) -> None:
    write("experiment/bad", GLOBAL + text)
    assert list(problems("+experiment=bad", config_dir="mine")) == messages


def test_code_in_a_configuration_is_refused_and_not_run(write: Write, tmp_path: Path) -> None:
    code = f"_target_: os.system\n_args_: ['touch {tmp_path / 'marker'}']\n"
    nested = "".join(f"  {line}\n" for line in code.splitlines())
    write("experiment/bad", f"{GLOBAL}{code}model:\n{nested}optimizer:\n{nested}callbacks:\n{nested}")
    write("model/bad", code)
    write("data/bad", f"defaults: [line, _self_]\n{code}_partial_: true\n")
    assert [p.split("`")[1] for p in problems("+experiment=bad", config_dir="mine")] == [
        "_target_",
        "_args_",
        "callbacks",
        "model._target_",
        "model._args_",
        "optimizer._target_",
        "optimizer._args_",
    ]
    (instead,) = problems("model=bad", config_dir="mine")
    assert instead == (
        "`model._target_` is not a key, since a configuration does not call code; for a class of your own write model=custom "
        "model.target=package.module:Class model.kwargs={…} and trust its package with --trust"
    )
    assert [p.split("`")[1] for p in problems("data=bad", config_dir="mine")] == ["data._target_", "data._args_", "data._partial_"]  # fmt: skip
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("+model._target_=a.B", "`model._target_` is not a key, since a configuration does not call code; for a class of your own "),
        ("schedule._partial_=true", "`schedule._partial_` is not a key, since a configuration does not call code; remove it"),
        ("model={_target_: a.b.C}", "`model` must be one of custom, formula, linear, mlp, polynomial, got {'_target_': 'a.b.C'}; for a class of your own write model=custom model.target=a.b:C model.kwargs={…} and trust its package with --trust"),
        ("model=a.b:C", "`model` must be one of custom, formula, linear, mlp, polynomial, got 'a.b:C'; for a class of your own write model=custom model.target=a.b:C "),
        ("schedule=torch.optim.StepLR", "`schedule` must be one of constant, cosine, step, warmup_cosine, got 'torch.optim.StepLR'"),
        ("data=t.csv", "`data` must be one of csv, curve, custom, diabetes, line, parquet, got 't.csv'; did you mean csv?"),
        ("model.target=a.b:C", "`model.target` is not a key of linear, which has init_from, bias, init; add model=custom, or remove it"),
    ],
)  # fmt: skip
def test_habits_of_instantiate_are_answered_by_what_to_write(argument: str, text: str) -> None:
    (problem,) = problems("+experiment=linreg", argument)
    assert problem.startswith(text)


@pytest.mark.parametrize("folder", ["nope", "", "a\0b", "mine/experiment/mine.yaml"])
def test_a_config_dir_that_is_not_a_folder_is_refused(folder: str, write: Write) -> None:
    write("experiment/mine", GLOBAL)
    assert problems("seed=3", config_dir=folder) == (
        f"`--config-dir` must be a folder of configuration groups, got {folder!r}; correct the path",
    )


# ------------------------------------------------------------------------------------------------- resumed and repeated


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a run directory with a saved configuration."""
    monkeypatch.chdir(tmp_path)
    arguments = ["+experiment=mlp", "optimizer.betas=[0.8,0.9]", "schedule=cosine", "run_dir=somewhere"]
    Path("run").mkdir()
    Path("run/config.yaml").write_text(yaml.safe_dump(plain(config(*arguments))), encoding="utf-8")
    return "run"


def test_a_resumed_run_uses_its_own_values(saved: str) -> None:
    composed = compose([f"resume={saved}", "train.steps=7", "record.every_steps=3", "device=cpu"])
    expected = config("+experiment=mlp", "optimizer.betas=[0.8,0.9]", "schedule=cosine", "run_dir=somewhere", "train.steps=7", "record.every_steps=3", "device=cpu", "resume=null")  # fmt: skip
    assert plain(composed.config) == plain(expected) | {"resume": "run"}
    assert composed.notices == (
        "a new number of steps changes the cosine schedule: previous steps used different learning rates",
        "another device or thread count may round differently: the bits may differ from an uninterrupted run",
    )


def test_keys_that_change_the_answer_are_refused_on_resume(saved: str) -> None:
    found = problems(f"resume={saved}", "seed=3", "model=linear", "lrr=3", "train.steps=abc")
    assert [problem.split("`")[1] for problem in found] == ["lrr", "model", "seed", "train.steps"]
    assert found[1] == (
        "`model` must not change when a run is resumed, because it would change the experiment (only "
        "device, data.path, data.valid_path, data.test_path, strategy, launch, train.steps, train.epochs, train.cuda_graph, train.select, checkpoint, record may); remove it, or start a new run"
    )


def test_a_repeated_run_uses_its_own_values(saved: str) -> None:
    composed = compose(["optimizer.eps=1e-6", "model=linear", "name=again_${seed}"], base=saved)
    expected = config("+experiment=mlp", "optimizer.betas=[0.8,0.9]", "schedule=cosine", "optimizer.eps=1e-6", "model=linear", "name=again_0")  # fmt: skip
    assert composed.config == expected
    assert compose([], base=saved).config.run_dir is None
    assert compose(["run_dir=new"], base=saved).config.run_dir == "new"


def test_an_experiment_and_resume_are_refused_with_rerun(saved: str) -> None:
    assert problems("+experiment=linreg", f"resume={saved}", base=saved) == (
        "`experiment` must not be given with rerun, which uses the configuration of the run; remove it",
        "`resume` must not be given with rerun, which creates a new run; remove one of them",
    )


@pytest.mark.parametrize("source", ["resume", "rerun"])
def test_a_folder_that_is_not_a_run_is_refused(source: str, tmp_path: Path) -> None:
    for path, message in [
        ("", f"`{source}` must be a run directory, got '', which is not a directory; correct the path"),
        ("nope", f"`{source}` must be a run directory, got 'nope', which is not a directory; correct the path"),
        (
            str(tmp_path),
            f"`{source}` must be a run directory, got {str(tmp_path)!r}, which has no config.yaml; give the directory of one run",
        ),
    ]:
        with pytest.raises(CheckpointError) as refused:
            compose([f"resume={path}"] if source == "resume" else [], base=path if source == "rerun" else None)
        assert refused.value.problems == (message,)


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("", "run/config.yaml is not a valid configuration: `name` is missing"),
        ("- 1\n", "run/config.yaml is not a valid configuration: the configuration must be a group of keys, got [1]"),
        ("seed: 1\nseed: 2\n", "run/config.yaml cannot be read: line 2: `seed` is given twice; remove one of them"),
        (
            "a: !!python/object/apply:os.system [touch marker]\n",
            "run/config.yaml cannot be read: line 1: `a` has the type tag:yaml.org,2002:python/object/apply:os.system",
        ),
        ("name: ${nope}\n", "run/config.yaml: `name` must be a value, got a reference '${nope}'; write the value"),
        ("\xff", "run/config.yaml "),
    ],
)
def test_a_damaged_saved_configuration_is_refused(text: str, beginning: str, saved: str) -> None:
    Path(saved, "config.yaml").write_bytes(text.encode("latin-1"))
    for arguments, base in ([f"resume={saved}", "train.steps=3"], None), (["train.steps=3"], saved):
        with pytest.raises(CheckpointError) as refused:
            compose(arguments, base=base)
        assert refused.value.problems[0].startswith(beginning)
    assert not Path("marker").exists()


def test_every_problem_of_a_saved_configuration_is_reported(saved: str) -> None:
    values = yaml.safe_load(Path(saved, "config.yaml").read_text())
    values["optimizer"] |= {"lr": -1, "_target_": "os.system"}
    Path(saved, "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(CheckpointError) as refused:
        saved_values(saved, "resume")
    assert [problem.split("`")[1] for problem in refused.value.problems] == ["optimizer._target_", "optimizer.lr"]
