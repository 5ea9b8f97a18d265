"""Runs of an older version are resumed, repeated, verified and compared with their original results."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import older
import pytest
import torch
import yaml

from runner import cli
from runner.commands.explain.explanation import explain
from runner.config.compose import check
from runner.config.parts import key
from runner.config.resume import saved_values
from runner.config.schema import Config, config_hash
from runner.runs.checkpoint_manifest import manifest_of, size_and_hash

NEWER = (
    "strategy.reduction", "strategy.chunks", "strategy.tensor_parallel", "launch.processes", "launch.nodes", "launch.rdzv_endpoint",
    "launch.max_restarts", "launch.timeout_seconds", "launch", "checkpoint.async_save", "record.hash_every_steps",
    "sweep.max_trials", "sweep.audit", "sweep.memory_gib", "sweep", "seeds",
)  # fmt: skip
"""Keys and groups that were added after the first version."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.mark.parametrize("file", older.config_files(), ids=lambda file: str(file.parent.relative_to(older.FOLDER)))
def test_the_hash_of_a_configuration_is_the_recorded_one(file: Path) -> None:
    recorded = json.loads(file.with_name("run.json").read_text())["config_hash"]
    assert config_hash(check(saved_values(str(file.parent), "resume"))) == recorded


def test_a_killed_run_is_resumed(tmp_path: Path) -> None:
    run = older.copied("killed", tmp_path)
    assert cli.main([f"resume={run}"]) == 0
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["resumed"]) == ("finished", 1)
    older.check_end(run, older.expected()["ends"]["killed"])


def test_a_run_older_than_the_choice_reports_its_last_state(tmp_path: Path) -> None:
    """It has early stopping, with which a new run would report its best state."""
    run = older.copied("killed", tmp_path)
    assert cli.main([f"resume={run}"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["selected"] == {
        "step": summary["steps"],
        "metrics": summary["metrics"],
        "parameters_sha256": summary["parameters_sha256"],
    }


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = older.copied("finished", tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert cli.main([f"resume={run}"]) == 0
    assert "finished is finished at step 20; there is nothing left to do" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_finished_run_is_resumed_with_more_steps(tmp_path: Path) -> None:
    run = older.copied("finished", tmp_path)
    assert cli.main([f"resume={run}", "train.steps=25"]) == 0
    lines = [json.loads(line) for line in (run / "hashes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 5, 10, 15, 20, 25]
    assert older.end(run)["steps"] == 25


def test_a_repeated_finished_run_has_the_same_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = older.copied("finished", tmp_path)
    assert cli.main(["rerun", str(run), "run_dir=again"]) == 0
    expected = older.expected()["ends"]["finished"]
    assert older.end(run) == expected
    older.check_end(Path("again"), expected)
    capsys.readouterr()
    code = cli.main(["diverge", str(run), "again"])
    out = capsys.readouterr().out
    assert "hashes.jsonl" in out
    if older.is_same_machine():
        assert code == 0, out


def test_a_killed_run_is_compared_up_to_its_last_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = older.copied("killed", tmp_path)
    assert cli.main(["rerun", str(run), "run_dir=again"]) == 0
    older.check_end(Path("again"), older.expected()["ends"]["killed"])
    capsys.readouterr()
    code = cli.main(["diverge", str(run), "again"])
    out = capsys.readouterr().out
    assert out.startswith("A  killed  running, step 16\n")
    if older.is_same_machine():
        assert code == 0, out


def test_a_finished_run_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = older.copied("finished", tmp_path)
    code = cli.main(["verify", "rerun", str(run)])
    out = capsys.readouterr().out
    assert f"recorded {older.expected()['ends']['finished']['parameters_sha256'][:16]}…  finished" in out
    if older.is_same_machine():
        assert code == 0, out


@pytest.mark.parametrize("name", ["sweep_half", "optuna"])
def test_a_sweep_is_resumed(name: str, tmp_path: Path) -> None:
    sweep, expected = older.copied(name, tmp_path), older.expected()["ends"][name]
    done = {number: (sweep / number / "summary.json").read_bytes() for number in ("0", "1")}
    assert cli.main(["-m", f"resume={sweep}"]) == 0
    manifest = json.loads((sweep / "sweep.json").read_text())
    assert (manifest["status"], manifest["resumed"]) == ("finished", 1)
    assert [member["state"] for member in manifest["members"]] == ["finished"] * 4
    assert done == {number: (sweep / number / "summary.json").read_bytes() for number in done}
    for number, end in expected.items():
        older.check_end(sweep / number, end)


def test_trials_of_a_sweep_are_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = older.copied("sweep_half", tmp_path)
    code = cli.main(["verify", "sweep", str(sweep), "--members", "1"])
    out = capsys.readouterr().out
    assert "vmapped with 1 " in out
    if older.is_same_machine():
        assert code == 0, out


# ---------------------------------------------------------------------------------------------------------- newer keys


def remove(values: dict[str, Any], path: str) -> None:
    *groups, name = path.split(".")
    for group in groups:
        values = values.get(group, {})
    values.pop(name, None)


def remove_keys(run: Path, paths: Iterable[str]) -> None:
    """Remove keys from a run as if it were older: from config.yaml and from the configuration in each checkpoint."""
    file = run / "config.yaml"
    values = yaml.safe_load(file.read_text())
    states = [(saved, torch.load(saved, weights_only=True)) for saved in run.glob("checkpoints/step_*/state.pt")]
    assert states
    for path in paths:
        for config in [values, *(state["config"] for _, state in states)]:
            remove(config, path)
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    for saved, state in states:
        torch.save(state, saved)
        manifest = manifest_of(state["step"], {saved.name: size_and_hash(saved.read_bytes())})
        saved.with_name("manifest.json").write_bytes(manifest)


@pytest.mark.parametrize("path", NEWER)
def test_a_run_older_than_a_key_is_resumed(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = older.copied("finished", tmp_path)
    recorded = json.loads((run / "run.json").read_text())["config_hash"]
    remove_keys(run, [path])
    assert config_hash(check(saved_values(str(run), "resume"))) == recorded
    assert cli.main([f"resume={run}"]) == 0
    assert "there is nothing left to do" in capsys.readouterr().out
    (first, *_) = explain([f"resume={run}"], only=[path]).values
    assert first.assignments[0].place == f"{run / 'config.yaml'} is older than this key"


def test_a_killed_run_older_than_all_newer_keys_is_resumed(tmp_path: Path) -> None:
    run = older.copied("killed", tmp_path)
    recorded = json.loads((run / "run.json").read_text())["config_hash"]
    remove_keys(run, NEWER)
    assert cli.main([f"resume={run}"]) == 0
    older.check_end(run, older.expected()["ends"]["killed"])
    assert json.loads((run / "run.json").read_text())["config_hash"] == recorded
    assert yaml.safe_load((run / "config.yaml").read_text()).keys() >= {"launch", "sweep", "seeds"}


def test_a_finished_run_older_than_all_newer_keys_is_repeated(tmp_path: Path) -> None:
    run = older.copied("finished", tmp_path)
    remove_keys(run, NEWER)
    assert cli.main(["rerun", str(run), "run_dir=again"]) == 0
    older.check_end(Path("again"), older.expected()["ends"]["finished"])
    assert cli.main(["diverge", str(run), "again"]) == 0 or not older.is_same_machine()


def test_a_sweep_older_than_all_newer_keys_is_resumed(tmp_path: Path) -> None:
    sweep = older.copied("sweep_half", tmp_path)
    for number in range(4):
        remove_keys(sweep / str(number), NEWER)
    assert cli.main(["-m", f"resume={sweep}"]) == 0
    for number, end in older.expected()["ends"]["sweep_half"].items():
        older.check_end(sweep / number, end)


@pytest.mark.parametrize("path", ["optimizer.lr", "train.compile", "train.early_stopping", "strategy", "checkpoint"])
def test_a_missing_key_of_the_first_version_is_refused(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = older.copied("finished", tmp_path)
    remove_keys(run, [path])
    assert cli.main([f"resume={run}"]) == 2
    assert f"is not a valid configuration: `{path}` is missing; it must be " in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- the guard


def test_every_key_newer_than_these_runs_names_its_value_from_before() -> None:
    missing = list(older.unnamed(Config, older.known()))
    assert not missing, (
        f"{', '.join(missing)}: a key that older runs do not have must name the value that they had: "
        "key(…, before=VALUE) in src/runner/config/schema.py"
    )


@dataclass(frozen=True, kw_only=True)
class Named:
    share: float = key("fraction", before=1.0)


@dataclass(frozen=True, kw_only=True)
class Nameless:
    share: float = key("fraction")


@dataclass(frozen=True, kw_only=True)
class Tomorrow(Config):
    """A later schema. Two of its four new keys do not name their value from before."""

    named: int = key("number", before=3)
    nameless: int = key("number")
    with_names: Named
    without_names: Nameless


def test_the_guard_finds_keys_and_groups_without_a_value_from_before() -> None:
    assert list(older.unnamed(Tomorrow, older.known())) == ["nameless", "without_names"]
    assert "train.compile" in older.known()
    assert "strategy[fsdp].chunks" in older.known()
    less = [known for known in older.known() if known not in ("train.compile", "model[mlp].dropout")]
    assert list(older.unnamed(Config, less)) == ["model[mlp].dropout", "train.compile"]
    assert list(older.unnamed(Config, [known for known in less if "[huber]" not in known])) == [
        "model[mlp].dropout", "train.compile",
    ]  # fmt: skip
