"""The threat model of SECURITY.md, a test for each line: what a stranger's files ask for, and that none of it happens.

Every attack would leave the file `PWNED`, or start a program that does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from runner import cli
from runner.config import introspection
from runner.config.schema import Config
from runner.runs.directory import git

QUICK = ["name=mine", "data.rows=12", "train.steps=2", "record.plots=false", "device=cpu", "device.threads=1"]
OPEN = "_target_: builtins.open, file: PWNED, mode: w"
"""Value that Hydra's `instantiate` turns into an open file."""
CODE = f"{{{OPEN}}}"
GLOBAL = "# @package _global_\n"
GROUPS = [name for name in introspection.hints(Config) if introspection.is_group(Config, name)]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def contents() -> set[Path]:
    return set(Path().rglob("*"))


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the messages of a command that must be refused without a trace."""
    before = contents()
    capsys.readouterr()
    assert cli.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert [line for line in lines if not line.startswith("error: ")] == []
    assert contents() == before
    return [line.removeprefix("error: ") for line in lines]


# ------------------------------------------------------------- nothing in a configuration is executed: typed arguments

TYPED = {
    "a launcher of my own": ([f"hydra.launcher={CODE}"], "hydra.launcher"),
    "the class of the launcher": (["hydra.launcher._target_=builtins.open"], "hydra.launcher._target_"),
    "the same with a plus": (["++hydra.launcher._target_=builtins.open"], "hydra.launcher._target_"),
    "below the launcher": (["+hydra.launcher.x._target_=builtins.open"], "hydra.launcher.x._target_"),
    "below the sweeper": ([f"+hydra.sweeper.x={CODE}"], "hydra.sweeper.x"),
    "for the sampler": (["hydra/sweeper=optuna", f"hydra.sweeper.sampler={CODE}"], "hydra.sweeper.sampler._target_"),
    "below the sampler": (["hydra/sweeper=optuna", "+hydra.sweeper.sampler._target_=builtins.open"], "hydra.sweeper.sampler._target_"),
    "in a list": (["hydra/launcher=pool", f"hydra.launcher.devices=[{CODE}]"], "hydra.launcher.devices.0._target_"),
    "in the settings of a plugin": (["hydra/launcher=submitit_slurm", f"hydra.launcher.additional_parameters={CODE}"], "hydra.launcher.additional_parameters._target_"),
    "deeper in them": (["hydra/launcher=submitit_slurm", f"hydra.launcher.additional_parameters.a.b={CODE}"], "hydra.launcher.additional_parameters.a.b"),
    "as a key of them": (["hydra/launcher=submitit_slurm", "++hydra.launcher.additional_parameters._target_=x"], "hydra.launcher.additional_parameters._target_"),
    "made by oc.create": (["hydra/launcher=submitit_slurm", f"hydra.launcher.additional_parameters.a='${{oc.create:\"{CODE}\"}}'"], "hydra.launcher.additional_parameters.a._target_"),
    "made by oc.decode": (["hydra/launcher=submitit_slurm", f"hydra.launcher.additional_parameters.a='${{oc.decode:\"{CODE.replace(': ', ':')}\"}}'"], "hydra.launcher.additional_parameters.a._target_"),
    "a part of a call": (["++hydra.launcher._partial_=true"], "hydra.launcher._partial_"),
    "its arguments": (["+hydra.launcher._args_=[PWNED]"], "hydra.launcher._args_"),
    "Hydra's own list of what may be called": (["+hydra.launcher._execution_whitelist_=['*']"], "hydra.launcher._execution_whitelist_"),
    "a callback": ([f"+hydra.callbacks.x={CODE}"], "hydra.callbacks.x"),
    "callbacks of a group": (["hydra/callbacks=evil"], "hydra/callbacks"),
    "a handler of logging": (["+hydra.job_logging.handlers.x={'()': builtins.open}"], "hydra.job_logging.handlers.x"),
    "a class of logging": (["+hydra.hydra_logging.handlers.x.class=os.system"], "hydra.hydra_logging.handlers.x.class"),
    "a package to search": (["hydra.searchpath=[pkg://evil]"], "hydra.searchpath"),
    "an environment variable": (["+hydra.job.env_set.LD_PRELOAD=evil.so"], "hydra.job.env_set.LD_PRELOAD"),
    "a launcher in another place": (["hydra/launcher@hydra.callbacks.x=joblib"], "hydra/launcher@hydra.callbacks.x"),
    "an unknown launcher": (["hydra/launcher=evil"], "hydra/launcher"),
    "a launcher that is a mapping": ([f"hydra/launcher={CODE}"], "hydra/launcher"),
    "arguments of Hydra's sweeper": (["hydra/sweeper=basic", "+hydra.sweeper.params={hydra.callbacks.x: 1}"], "hydra.sweeper.params"),
    "a key that does not exist": (["+hydra.launcher.nope=1"], "hydra.launcher.nope"),
    "the same without a plus": (["hydra.launcher.nope=1"], "hydra.launcher.nope"),
    "a formula": (["model=formula", "model.expression=\"__import__('os').mkdir('PWNED')\""], "model.expression"),
    **{f"in {group}": ([f"+{group}.x={CODE}"], f"{group}.x") for group in GROUPS},
    **{f"as {group}": ([f"++{group}._target_=builtins.open"], f"{group}._target_") for group in GROUPS},
}  # fmt: skip


@pytest.mark.parametrize("name", TYPED)
def test_nothing_typed_is_executed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is refused with a message that names the key, in a sweep and, where that has such keys, in a run."""
    arguments, key = TYPED[name]
    messages = refused(["-m", "seeds=2", *QUICK, *arguments], capsys)
    assert any(f"`{key}`" in message for message in messages), messages
    refused([*QUICK, *arguments], capsys)


def test_the_message_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["hydra/launcher=pool", "hydra.launcher.per_devise=2", "+hydra.launcher.x=1"]
    assert refused(["-m", "seeds=2", *arguments], capsys) == [
        "`hydra.launcher.per_devise` is not a key of hydra/launcher=pool, which has devices, per_device; did you mean `hydra.launcher.per_device`?",
        "`hydra.launcher.x` is not a key of hydra/launcher=pool, which has devices, per_device; leave it out",
    ]
    assert refused(["-m", "seeds=2", "+hydra.launcher.nope=1"], capsys) == [
        "`hydra.launcher.nope` is not a key of hydra/launcher=vmap, which has none; leave it out"
    ]
    assert refused(["-m", "seeds=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=many"], capsys) == [
        "`hydra.launcher.n_jobs` cannot be set to 'many': Value 'many' of type 'str' could not be converted to Integer; correct the value"
    ]
    assert refused(["-m", "seeds=2", "hydra/launcher=pol"], capsys) == [
        "`hydra/launcher` must be one of vmap, pool, basic, joblib, submitit_local, submitit_slurm, ray, got 'pol'; did you mean pool?"
    ]


# ------------------------------------------------------------------------ nothing in a configuration is executed: files

FILES: dict[str, dict[str, str]] = {
    "at the root": {"experiment/evil": f"{GLOBAL}_target_: builtins.open\nfile: PWNED\nmode: w\n"},
    **{f"in {group}": {"experiment/evil": f"{GLOBAL}{group}: {CODE}\n"} for group in GROUPS},
    "in a model of my own": {"model/evil": f"name: linear\nbias: true\nx: {CODE}\n"},
    "a callback": {"experiment/evil": f"{GLOBAL}hydra: {{callbacks: {{x: {CODE}}}}}\n"},
    "a callback with a quoted key": {"experiment/evil": f'{GLOBAL}"hydra": {{callbacks: {{x: {CODE}}}}}\n'},
    "a callback with an explicit key": {"experiment/evil": f"{GLOBAL}? hydra\n: {{callbacks: {{x: {CODE}}}}}\n"},
    "a callback in flow style": {"experiment/evil": f"{GLOBAL}{{hydra: {{callbacks: {{x: {CODE}}}}}}}\n"},
    "a callback by an alias": {"experiment/evil": f"{GLOBAL}name: &k hydra\n*k : {{callbacks: {{x: {CODE}}}}}\n"},
    "a callback by its package": {"experiment/evil": f"{GLOBAL}defaults: [/part: a]\n", "part/a": f"# @package hydra.callbacks\nx: {CODE}\n"},
    "a callback moved to its place": {"experiment/evil": f"{GLOBAL}defaults: [/part@hydra.callbacks: a]\n", "part/a": f"x: {CODE}\n"},
    "a callback from an option": {"data/evil": f"# @package hydra.callbacks\nx: {CODE}\n"},
    "a callback by oc.create": {"experiment/evil": f"{GLOBAL}hydra: {{callbacks: \"${{oc.create:'{{x: {CODE}}}'}}\"}}\n"},
    "a handler of logging": {"experiment/evil": f'{GLOBAL}hydra: {{job_logging: {{handlers: {{x: {{"()": builtins.open, file: PWNED, mode: w}}}}, root: {{handlers: [x]}}}}}}\n'},
    "logging moved to its place": {"experiment/evil": f"{GLOBAL}defaults: [/part@hydra.job_logging: a]\n", "part/a": 'handlers: {x: {"()": builtins.open, file: PWNED, mode: w}}\n'},
    "the environment": {"experiment/evil": f"{GLOBAL}defaults: [/part@hydra.job: a]\n", "part/a": "env_set: {PYTHONSTARTUP: evil.py}\n"},
    "a folder to work in": {"experiment/evil": f"{GLOBAL}hydra: {{run: {{dir: PWNED}}, job: {{chdir: true}}}}\n"},
    "a package to search": {"experiment/evil": f"{GLOBAL}hydra: {{searchpath: [pkg://evil]}}\n"},
    "a launcher of my own": {"experiment/evil": f"{GLOBAL}defaults: [override /hydra/launcher: evil]\n", "hydra/launcher/evil": f"{OPEN.replace(', ', chr(10))}\n"},
    "another launcher": {"experiment/evil": f"{GLOBAL}defaults:\n  - override /hydra/launcher: joblib\n"},
    "another launcher in flow style": {"experiment/evil": f"{GLOBAL}defaults: [{{override /hydra/launcher: joblib}}]\n"},
    "the same launcher": {"experiment/evil": f"{GLOBAL}defaults:\n  - override /hydra/launcher: basic\n"},
    "a launcher as the model": {"experiment/evil": f"{GLOBAL}defaults: [/hydra/launcher@model: joblib]\n"},
    "an installed launcher replaced": {"experiment/evil": f"{GLOBAL}name: x\n", "hydra/launcher/joblib": f"{OPEN.replace(', ', chr(10))}\n"},
    "all of Hydra replaced": {"experiment/evil": f"{GLOBAL}name: x\n", "hydra/config": f"callbacks: {{x: {CODE}}}\n"},
    "a tag of YAML": {"experiment/evil": f"{GLOBAL}name: !!python/object/apply:os.mkdir [PWNED]\n"},
    "a formula": {"experiment/evil": f"{GLOBAL}defaults: [override /model: formula]\nmodel: {{expression: \"open('PWNED', 'w')\"}}\n"},
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", [[], ["-m", "seeds=2", "hydra/launcher=basic"]], ids=["run", "sweep"])
def test_nothing_in_a_folder_is_executed(name: str, how: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for path, text in FILES[name].items():
        file = Path("folder", f"{path}.yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    chosen = {"model/evil": "model=evil", "data/evil": "data=evil"}.get(next(iter(FILES[name])), "+experiment=evil")
    refused([*how, "--config-dir", "folder", chosen, *QUICK], capsys)


def test_hydra_settings_in_a_file_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own/experiment").mkdir(parents=True)
    for text, what in (
        ("hydra:\n  run: {dir: x}\n", "`hydra:` (line 2)"),
        ("defaults:\n  - override /hydra/launcher: joblib\n", "`override /hydra/launcher` (line 3)"),
    ):
        Path("own/experiment/mine.yaml").write_text(GLOBAL + text)
        assert refused(["--config-dir", "own", "+experiment=mine"], capsys) == [
            f"own/experiment/mine.yaml must not have {what}, because Hydra's own settings keep their values; "
            "remove it, and choose launcher and sweeper with -m"
        ]
    Path("own/experiment/mine.yaml").write_text(f"{GLOBAL}name: mine\n")
    Path("own/hydra").mkdir()
    assert refused(["--config-dir", "own", "+experiment=mine"], capsys) == [
        "`--config-dir` must be a folder without hydra/, which would replace parts of Hydra itself, got 'own'; remove it, and choose launcher and sweeper with -m"
    ]


# ------------------------------------------------------------------- nothing in a configuration is executed: sweep.json


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of which one trial is missing."""
    folder = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        assert cli.main(["-m", "seeds=2", *QUICK, "run_dir=sweep"]) == 0
    shutil.rmtree(folder / "sweep" / "1")
    return folder / "sweep"


def strangers(half: Path, changes: Mapping[str, Any]) -> None:
    """Copy the sweep to the working directory with other values in its manifest. Lists are added to."""
    shutil.copytree(half, "sweep", symlinks=True)
    file = Path("sweep/sweep.json")
    values = json.loads(file.read_text())
    for key, value in changes.items():
        values[key] = values[key] + value if isinstance(value, list) else value
    values["members"] = values["members"][:1]
    file.write_text(json.dumps(values))


def words(target: str, **arguments: str) -> list[str]:
    return [
        f"{target}={arguments.pop('call')}",
        *(f"{target.rpartition('.')[0]}.{k}={v}" for k, v in arguments.items()),
    ]


STORED: dict[str, dict[str, Any]] = {
    "a pickle": {"hydra": words("+hydra.callbacks.x._target_", call="joblib.load", filename="evil.pkl")},
    "a pickle of numpy": {"hydra": words("+hydra.callbacks.x._target_", call="numpy.load", file="evil.npy", allow_pickle="true")},
    "a file opened": {"hydra": words("+hydra.callbacks.x._target_", call="builtins.open", file="PWNED", mode="w")},
    "a folder made": {"hydra": words("+hydra.callbacks.x._target_", call="os.mkdir", path="PWNED")},
    "a folder of modules": {"hydra": words("+hydra.callbacks.x._target_", call="site.addsitedir", sitedir="folder")},
    "below the launcher": {"hydra": words("+hydra.launcher.x._target_", call="builtins.open", file="PWNED", mode="w")},
    "below the sweeper": {"hydra": words("+hydra.sweeper.x._target_", call="os.mkdir", path="PWNED")},
    "the class of the sweeper": {"hydra": ["hydra.sweeper._target_=os.mkdir"]},
    "a launcher of its folder": {"hydra": ["hydra/launcher=evil"], "config_dir": "folder"},
    "its folder": {"config_dir": "folder"},
    "logging": {"hydra": ["+hydra.job_logging.handlers.x={'()': builtins.open, file: PWNED, mode: w}"]},
    "a package to search": {"hydra": ["hydra.searchpath=[pkg://evil]"]},
    "commands of a job": {"hydra": ["hydra/launcher=submitit_slurm", "hydra.launcher.setup=[touch PWNED]"]},
    "code in joblib's settings": {"hydra": ["hydra/launcher=joblib", "hydra.launcher.pre_dispatch=open('PWNED')"]},
    "a journal elsewhere": {"hydra": ["hydra/sweeper=optuna", "hydra.sweeper.storage=PWNED", "hydra.sweeper.study_name='$(x)'"]},
    "a journal by a reference": {"hydra": ["hydra/sweeper=optuna", "hydra.sweeper.storage='${oc.env:HOME}/PWNED'"]},
    "among the arguments of trials": {"task": ["+hydra.callbacks.x._target_=os.mkdir"]},
    "a trial elsewhere": {"task": ["run_dir=PWNED"]},
    "another run resumed": {"task": ["resume=PWNED"]},
    "a model of its own": {"task": ["++model._target_=os.mkdir"]},
    "many trials": {"task": ["seeds=5"]},
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_nothing_in_a_sweep_directory_is_executed(name: str, half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder/hydra/launcher").mkdir(parents=True)
    Path("folder/hydra/launcher/evil.yaml").write_text(OPEN.replace(", ", "\n"))
    Path("folder/evil.pth").write_text("import os; os.mkdir('PWNED')\n")
    strangers(half, STORED[name])
    before = Path("sweep/sweep.json").read_bytes()
    messages = refused(["-m", "resume=sweep"], capsys)
    assert all(message.startswith("sweep/sweep.json: `") for message in messages), messages
    assert Path("sweep/sweep.json").read_bytes() == before


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (["train.steps=-1", "seed=range(0,4)"], "`train.steps` must be an integer of at least 1 or null, got -1"),
        (["seed=range(0,4)", "launch.processes=0"], "`launch.processes` must be an integer from 1 to 1024, got 0"),
        (["seed=range(0,4)", "optimizer=nope"], "`optimizer` must be one of adam, adamw, custom, lbfgs, lm, lstsq, momentum, sgd, got 'nope'"),
        (["optimizer.lr=1e-5,-1"], "trial 1 and 1 more: `optimizer.lr` must be a finite number from 0 to 1e+38, got -1"),
        (["seed=0,1", "train.accumulate=50", "train.batch_size=10"], "`train.accumulate` must be at most `train.batch_size`=10, got 50; use a smaller number"),
    ],
)  # fmt: skip
def test_a_bad_argument_in_a_sweep_directory_is_named_with_its_file(
    task: list[str], message: str, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strangers(half, {"task": task, "members": []})
    assert refused(["-m", "resume=sweep"], capsys) == [f"sweep/sweep.json: {message}"]
    assert refused(["-m", "resume=sweep", "sweep.max_trials=0"], capsys)[-1] == (
        "`sweep.max_trials` must be an integer from 1 to 1000000, got 0"
    )


def test_settings_of_other_plugins_are_typed_again(
    half: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.setenv("KMP_INIT_AT_FORK", "FALSE")  # joblib sets it
    settings = ["hydra.launcher.n_jobs=1", "hydra.launcher.verbose=0"]
    strangers(half, {"hydra": ["hydra/launcher=joblib", *settings]})
    expected = "sweep/sweep.json: {} must be typed again, because such settings may hold commands and are never taken from a file, which has {}; add each of them, with this value or another"
    assert refused(["-m", "resume=sweep"], capsys) == [
        expected.format("`hydra.launcher.n_jobs`, `hydra.launcher.verbose`", ", ".join(settings))
    ]
    assert refused(["-m", "resume=sweep", settings[0]], capsys) == [
        expected.format("`hydra.launcher.verbose`", settings[1])
    ]
    assert cli.main(["-m", "resume=sweep", *settings]) == 0
    assert [m["state"] for m in json.loads(Path("sweep/sweep.json").read_text())["members"]] == ["finished"] * 2


def test_own_settings_are_replayed(half: Path) -> None:
    strangers(half, {"hydra": ["hydra/launcher=pool", "hydra.launcher.per_device=1"]})
    assert cli.main(["-m", "resume=sweep"]) == 0
    assert json.loads(Path("sweep/sweep.json").read_text())["hydra"] == [
        "hydra/launcher=pool",
        "hydra.launcher.per_device=1",
    ]


def test_the_folder_of_a_sweep_is_typed_again(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    strangers(half, {"config_dir": "/some/where else"})
    assert refused(["-m", "resume=sweep"], capsys) == [
        "sweep/sweep.json: `--config-dir` must be typed again, because it is never taken from a file, which has "
        "'/some/where else'; add --config-dir '/some/where else'"
    ]
    assert cli.main(["-m", "--config-dir", "folder", "resume=sweep"]) == 0
    assert json.loads(Path("sweep/sweep.json").read_text())["config_dir"] == "folder"


# ------------------------------------------------------------------------------- a run directory, by its configuration


@pytest.mark.parametrize("verb", ["resume=run", "rerun run"])
@pytest.mark.parametrize("text", [f"hydra: {{callbacks: {{x: {CODE}}}}}\n", f"x: {CODE}\n", "_target_: os.mkdir\n"])
def test_nothing_in_a_run_directory_is_executed(
    verb: str, text: str, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(half / "0", "run", symlinks=True)
    with Path("run/config.yaml").open("a") as file:
        file.write(text)
    refused(verb.split(), capsys)


# --------------------------------------------------------------------------------------- the folder in which it starts


@pytest.fixture
def trap() -> None:
    """Modules in the working directory that leave a trace when they are imported."""
    for name in ("yaml.py", "torch.py", "hydra.py", "runner.py", "numpy.py", "json.py", "hydra_plugins/evil.py"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("open('PWNED', 'w')\nraise SystemExit('pwned')\n")


SCRIPT = [str(Path(sys.executable).parent / "runner")]


@pytest.mark.usefixtures("trap")
@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python 3.10 has no -P, and a process that it starts imports from the folder"
)
@pytest.mark.parametrize(
    "command",
    [
        [*SCRIPT, *QUICK],
        [sys.executable, "-P", "-m", "runner", *QUICK],
        [*SCRIPT, "-m", "seeds=1", "hydra/launcher=pool", *QUICK],
        [*SCRIPT, *QUICK, "launch.processes=2"],
        [*SCRIPT, "doctor"],
    ],
    ids=["script", "python -P", "pool", "processes", "doctor"],
)  # fmt: skip
def test_nothing_is_imported_from_the_folder(command: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert not Path("PWNED").exists()
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("trap")
def test_python_m_itself_imports_from_the_folder() -> None:
    """The import that SECURITY.md warns of happens before the first line of this package runs."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    subprocess.run([sys.executable, "-m", "runner", "--version"], capture_output=True, env=environment, check=False)
    assert Path("PWNED").exists()


def _git(*arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is needed")
@pytest.mark.parametrize("key", ["core.fsmonitor", "filter.x=y.clean", "filter.x.process", "in a submodule"])
def test_no_program_of_a_repository_is_started(key: str, tmp_path: Path) -> None:
    program = tmp_path / "evil.sh"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/PWNED\ncat\n")
    program.chmod(0o755)
    _git("init", "-q", ".")
    Path("a").write_text("a\n")
    _git("add", "a")
    _git("commit", "-qm", "one")
    if key == "in a submodule":
        _git("clone", "-q", ".", "other")
        _git("submodule", "add", "-q", "./other", "other")
        _git("commit", "-qm", "two")
        _git("-C", "other", "config", "core.fsmonitor", str(program))
    else:
        _git("config", key, str(program))
        Path(".gitattributes").write_text(f"a filter={key.split('.')[1]}\n")
    os.utime("a", (1, 1))
    found = git()
    assert not Path("PWNED").exists()
    assert len(found["git_commit"]) == 40
    assert found["git_dirty"] is (None if key.startswith("filter") else False)
