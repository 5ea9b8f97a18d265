"""Contract of launchers and sweepers, ours and Hydra's: the same sweep runs through all of them.

It varies two files, with commas, quotes and brackets in their names, and two learning rates, one of which diverges.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import runner
from runner import cli
from runner.config.overrides import quoted

FILES = ["it's {a} [2]=$x.csv", "my data, 1.csv"]
RATES = [1e-3, 1e30]
FIXED = [
    "name=contract", "data=csv", "data.target=y", "model=formula", "model.expression=a*exp(-b*x) + c", "dtype=float32",
    "model.start.a=0.5", "train.steps=4", "record.every_steps=2", "device=cpu", "device.threads=1",
]  # fmt: skip
NEEDS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}
"""Launcher → module of its plugin, for launchers that need an extra."""

PAIRS = [
    ("vmap", "grid"), ("vmap", "basic"), ("vmap", "optuna"), ("basic", "grid"), ("basic", "basic"), ("basic", "optuna"),
    ("pool", "grid"), ("joblib", "basic"), ("submitit_local", "grid"), ("ray", "grid"),
]  # fmt: skip
"""Launcher and sweeper. Launchers that start processes, which takes seconds, occur once."""

COSTLY = ("pool", *NEEDS)

WHOLE = {"config.yaml", "run.json", "metrics.jsonl", "summary.json", "checkpoints", "run.log", "preprocessing.json"}


def written(sweeper: str, files: Sequence[str]) -> list[str]:
    """Return the swept keys in the form that a sweeper parses."""
    values = {"data.path": map(quoted, files), "optimizer.lr": map(str, RATES)}
    form = "{}=choice({})" if sweeper == "optuna" else "{}={}"
    return [form.format(key, ",".join(texts)) for key, texts in values.items()]


@dataclass(frozen=True)
class Swept:
    """A sweep that has run and was resumed. `before` has the records of its members before that."""

    launcher: str
    sweeper: str
    directory: Path
    codes: tuple[int, int]
    before: dict[int, str]

    @property
    def files(self) -> list[str]:
        """Files that are swept."""
        return FILES[:1] if self.launcher in COSTLY else FILES

    @property
    def numbers(self) -> range:
        """Numbers of the trials."""
        return range(len(self.files) * len(RATES))

    @property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "sweep.json").read_text())
        return found

    @property
    def members(self) -> list[dict[str, Any]]:
        return list(self.manifest["members"])

    def read(self, number: int, name: str) -> Any:
        text = (self.directory / str(number) / name).read_text()
        return yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)


@pytest.fixture(scope="class", params=PAIRS, ids="-".join)
def swept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    launcher, sweeper = request.param
    if launcher in NEEDS:
        pytest.importorskip(NEEDS[launcher], reason=f"hydra/launcher={launcher} is an extra")
    if sweeper == "optuna":
        pytest.importorskip("optuna")
    folder = tmp_path_factory.mktemp("contract")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in FILES:
            make(Path(name))
        files = FILES[:1] if launcher in COSTLY else FILES
        search = ["hydra.sweeper.sampler=grid", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2"]
        arguments = [f"hydra/launcher={launcher}", f"hydra/sweeper={sweeper}", *(search if sweeper == "optuna" else [])]
        directory = Path("the, sweep's")
        first = cli.main(["-m", *arguments, *FIXED, *written(sweeper, files), f"run_dir={quoted(str(directory))}"])
        before = {int(path.parent.name): path.read_text() for path in directory.glob("*/run.json")}
        again = cli.main(["-m", f"resume={quoted(str(directory))}"])
        yield Swept(launcher, sweeper, directory, (first, again), before)


def make(path: Path) -> None:
    lines = [f"{k / 10},{1 + k * k / 100}" for k in range(12)]
    path.write_text("\n".join(["x,y", *lines]) + "\n")


@cache
def single_run(folder: Path, path: str) -> dict[str, Any]:
    """Return the summary of a trial that runs by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        overrides = [*FIXED, f"data.path={quoted(path)}", f"optimizer.lr={RATES[0]}", "record.plots=false"]
        return runner.run(None, overrides).summary


def journal(directory: Path) -> dict[int, tuple[str, float | None]]:
    """Read the trials from Optuna's study: number → state and value."""
    from optuna import load_study
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(directory / "optuna.log")))
    trials = load_study(study_name="sweep", storage=storage).trials
    return {trial.number: (trial.state.name, trial.value) for trial in trials}


class TestContract:
    """Contract of launchers and sweepers."""

    def test_a_sweep_with_a_failed_trial_has_failed(self, swept: Swept) -> None:
        assert swept.codes[0] == 1
        assert swept.manifest["status"] == "failed"

    def test_the_directories_are_numbered_from_zero(self, swept: Swept) -> None:
        folders = {path.name for path in swept.directory.iterdir() if path.is_dir() and not path.name.startswith(".")}
        assert folders == {*map(str, swept.numbers), "plots"}
        assert {path.name for path in swept.directory.iterdir()} >= {"sweep.json", "results.csv"}
        assert [member["number"] for member in swept.members] == list(swept.numbers)

    def test_every_combination_runs_once_in_its_own_directory(self, swept: Swept) -> None:
        configs = [swept.read(number, "config.yaml") for number in swept.numbers]
        ran = [(config["data"]["path"], config["optimizer"]["lr"]) for config in configs]
        requested = [(path, rate) for path in swept.files for rate in RATES]
        assert (sorted(ran) if swept.sweeper == "optuna" else ran) == sorted(requested)
        keys = ["data.path", "optimizer.lr"] if len(swept.files) > 1 else ["optimizer.lr"]
        for member, values in zip(swept.members, ran, strict=True):
            assert member["values"] == dict(zip(keys, values[-len(keys) :], strict=True))
        assert {config["model"]["expression"] for config in configs} == {"a*exp(-b*x) + c"}
        assert [Path(config["run_dir"]).name for config in configs] == [*map(str, swept.numbers)]

    def test_only_diverging_trials_fail(self, swept: Swept) -> None:
        for member in swept.members:
            record = swept.read(member["number"], "run.json")
            if member["values"]["optimizer.lr"] == RATES[0]:
                assert (member["state"], record["status"], member["reason"]) == ("finished", "finished", None)
            else:
                assert (member["state"], record["status"]) == ("failed", "failed")
                assert member["reason"] == record["reason"]
                assert member["reason"].startswith("training diverged at step 2: the loss became inf with lr=1e+30")

    def test_a_member_is_a_complete_run(self, swept: Swept) -> None:
        for member in swept.members:
            names = {path.name for path in (swept.directory / str(member["number"])).iterdir()}
            events = {name for name in names if name.startswith("events.out.tfevents.")}
            assert events
            assert names - events == (WHOLE if member["state"] == "finished" else WHOLE - {"summary.json"})
            record = swept.read(member["number"], "run.json")
            assert record["config_hash"] == member["config_hash"]
            assert (record["device"], record["threads"], record["world_size"]) == ("cpu", 1, 1)

    def test_a_trial_has_the_results_of_a_single_run(self, swept: Swept) -> None:
        for member in swept.members:
            if member["state"] == "finished":
                summary = swept.read(member["number"], "summary.json")
                path = swept.read(member["number"], "config.yaml")["data"]["path"]
                single = single_run(swept.directory.resolve().parent, path)
                # Two trials are vmapped with hydra/launcher=vmap. With the others each runs by itself, and the bits are equal.
                assert summary["metrics"] == pytest.approx(single["metrics"], rel=1e-4)
                if swept.launcher != "vmap":
                    assert summary["parameters_sha256"] == single["parameters_sha256"]

    def test_results_csv_has_the_results_of_the_trials(self, swept: Swept) -> None:
        lines = (swept.directory / "results.csv").read_text().splitlines()
        assert [line.partition(",")[0] for line in lines[1:]] == [*map(str, swept.numbers)]
        for line, member in zip(lines[1:], swept.members, strict=True):
            assert member["state"] in line
            if member["state"] == "finished":
                assert swept.read(member["number"], "summary.json")["parameters_sha256"] in line

    def test_a_sweeper_gets_the_results_of_its_trials(self, swept: Swept) -> None:
        """They are in the order of the jobs, also in a second generation, whose numbers do not start at 0."""
        stored = journal(swept.directory) if swept.sweeper == "optuna" else {}
        for number, (state, value) in stored.items():
            (member,) = (member for member in swept.members if member["number"] == number)
            assert state == ("COMPLETE" if member["state"] == "finished" else "FAIL")
            if value is not None:
                assert value == swept.read(number, "summary.json")["metrics"]["train/rmse"]
        assert len(stored) == (4 if swept.sweeper == "optuna" else 0)

    def test_resume_runs_only_failed_trials(self, swept: Swept) -> None:
        assert swept.codes[1] == 1
        assert swept.manifest["resumed"] == 1
        for member in swept.members:
            now = (swept.directory / str(member["number"]) / "run.json").read_text()
            if member["state"] == "finished" or swept.sweeper == "optuna":  # its study counts a failed trial as ended
                assert now == swept.before[member["number"]]
            else:
                assert json.loads(now)["resumed"] == 1

    def test_nothing_is_left_outside_the_sweep_directory(self, swept: Swept) -> None:
        folder = swept.directory.resolve().parent
        shutil.rmtree(folder / "runs", ignore_errors=True)  # from the single runs
        assert {path.name for path in folder.iterdir()} == {*FILES, swept.directory.name}
