"""The manifest of a sweep: written atomically, checked when read, and updated from the records of its trials."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from runner.errors import CheckpointError, ConfigError
from runner.sweep.manifest import Manifest, sweep_directory

VALUES: dict[str, Any] = {
    "name": "line",
    "config_dir": None,
    "task": [],
    "fixed": ["+experiment=linreg"],
    "swept": ["seed"],
}

RESULT: dict[str, Any] = {
    "steps": 1,
    "metrics": {"train/loss": 1.0},
    "parameters_sha256": "",
    "timing": {"seconds": 1.0},
}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest.create(tmp_path / "sweep", VALUES)


def member(number: int, **changes: Any) -> dict[str, Any]:
    entry = {"number": number, "values": {"seed": number}, "overrides": ["+experiment=linreg", f"seed={number}"]}
    return {**entry, "asked_hash": f"hash {number}", **changes}


def with_states(manifest: Manifest, states: Sequence[str]) -> Manifest:
    manifest.add(member(number) for number in range(len(states)))
    for number, state in enumerate(states):
        manifest.mark([number], state)
    manifest.save()
    return manifest


def run(manifest: Manifest, number: int, record: Mapping[str, Any] | None, summary: Any = None) -> None:
    """Write the files that a trial's process leaves."""
    directory = manifest.member_directory(number)
    directory.mkdir()
    if record is not None:
        (directory / "run.json").write_text(json.dumps(record))
    if summary is not None:
        (directory / "summary.json").write_text(json.dumps(summary))


def states(manifest: Manifest) -> list[str]:
    return [manifest.members[number]["state"] for number in sorted(manifest.members)]


# The sweep directory.


def test_a_new_sweep_directory_has_a_manifest(tmp_path: Path) -> None:
    manifest = Manifest.create(tmp_path / "some" / "where", VALUES)
    found = json.loads((tmp_path / "some/where/sweep.json").read_text())
    assert found == manifest.values
    assert (found["status"], found["ended"], found["resumed"], found["members"]) == ("running", None, 0, [])
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["where"]


def test_an_empty_directory_is_used(tmp_path: Path) -> None:
    Manifest.create(tmp_path, VALUES)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("full", "it exists and is not empty"), ("full/file", "Not a directory"), ("a\0b", "null byte"), ("a" * 300, "File name too long")],
)  # fmt: skip
def test_a_directory_that_cannot_be_made_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        Manifest.create(tmp_path / name, VALUES)
    (problem,) = caught.value.problems
    # A long name is cut in its middle.
    place = tmp_path / name if len(name) < 100 else tmp_path
    assert problem.startswith(f"`run_dir` must be a new or empty directory for the sweep, got {place}")
    assert reason in problem
    assert problem.endswith("; give another one")
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == [Path("full"), Path("full/file")]


def test_a_sweep_without_a_run_dir_gets_a_unique_directory() -> None:
    assert sweep_directory("line", "some/where") == Path("some/where")
    found = {sweep_directory("line", None) for _ in range(20)}
    assert len(found) == 20
    assert all(re.fullmatch(r"runs/line/sweep_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[0-9a-f]{6}", str(path)) for path in found)


# Writing and reading.


def test_a_saved_manifest_is_read_back(manifest: Manifest) -> None:
    manifest.add([member(2), member(0, values={"seed": 0, "optimizer.lr": math.inf}), member(1)])
    manifest.mark([1], "failed", "it diverged")
    manifest.save()
    found = Manifest.read(manifest.directory)
    assert [m["number"] for m in json.loads((manifest.directory / "sweep.json").read_text())["members"]] == [0, 1, 2]
    assert found.members[0]["values"] == {"seed": 0, "optimizer.lr": "inf"}  # JSON has no such number
    assert found.members[1] == {**member(1), "config_hash": None, "state": "failed", "reason": "it diverged"}
    assert found.states() == {"waiting": 2, "failed": 1}
    assert found.fixed_keys == {"experiment"}


def test_a_failed_save_keeps_the_previous_manifest(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (manifest.directory / "sweep.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    manifest.add([member(0)])
    with pytest.raises(OSError, match="No space left"):
        manifest.save()
    assert (manifest.directory / "sweep.json").read_bytes() == before
    assert [path.name for path in manifest.directory.iterdir()] == ["sweep.json"]


def test_a_directory_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"without sweep\.json; give the directory of a sweep, or leave out -m to resume one run$"
    ):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "3"])
def test_an_invalid_manifest_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(
        CheckpointError, match=r"sweep\.json must be the manifest of a sweep, but cannot be read .*; restore it$"
    ):
        Manifest.read(tmp_path)


TASK = '"name": "a", "task": []'


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"members": null}', "`name` is missing; it must be a string"),
        (f'{{{TASK}, "members": null}}', "`members` must be a list of trials, got null; restore the file"),
        (f'{{{TASK}, "members": [{{"values": {{}}}}]}}', "`members.0.number` is missing; it must be an integer from 0 to 1000000000"),
        (f'{{{TASK}, "members": [{{"values": {{}}, "number": "../..", "state": "failed"}}]}}', "`members.0.number` must be an integer from 0 to 1000000000, got '../..'; restore the file"),
        (f'{{{TASK}, "members": [{{"values": 3, "number": 0, "state": "failed"}}]}}', "`members.0.values` must be a group of keys, got 3; restore the file"),
        (f'{{{TASK}, "members": [], "resumed": "x"}}', "`resumed` must be an integer of at least 0, got 'x'; restore the file"),
        (f'{{{TASK}, "members": [], "format": 2}}', "`format` must be at most 1, got 2; it was written by a newer version of runner, use that"),
    ],
)  # fmt: skip
def test_a_manifest_of_another_form_is_refused(content: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        Manifest.read(tmp_path)
    assert caught.value.problems[0] == f"{tmp_path / 'sweep.json'}: {problem}"


# The trials.


def test_known_trials_keep_their_state(manifest: Manifest) -> None:
    with_states(manifest, ["finished", "failed"])
    manifest.add(member(number) for number in range(3))
    assert states(manifest) == ["finished", "failed", "waiting"]


def test_a_known_trial_with_another_configuration_is_refused(manifest: Manifest) -> None:
    with_states(manifest, ["finished", "waiting"])
    with pytest.raises(CheckpointError) as caught:
        manifest.add([member(0, asked_hash="another"), member(1), member(2)])
    assert caught.value.problems == (
        f"trial 0 of {manifest.directory} must have the same configuration as before, but it has changed; "
        "restore the files of conf/, or start a new sweep",
    )


def test_finished_and_pruned_trials_are_done(manifest: Manifest) -> None:
    with_states(manifest, ["finished", "pruned", "failed", "interrupted", "running", "waiting"])
    assert [manifest.done(number) for number in range(7)] == [True, True, False, False, False, False, False]


# The records of the trials.


@pytest.mark.parametrize(
    ("state", "record", "summary", "expected"),
    [
        ("running", {"status": "finished"}, RESULT, "finished"),
        ("waiting", {"status": "finished"}, RESULT, "finished"),
        ("running", {"status": "finished"}, None, "interrupted"),
        ("running", {"status": "failed", "reason": "it diverged"}, None, "failed"),
        ("running", {"status": "running"}, None, "interrupted"),
        ("running", {"status": "interrupted"}, None, "interrupted"),
        ("running", None, None, "waiting"),
        ("waiting", None, None, "waiting"),
        ("failed", {"status": "finished"}, RESULT, "failed"),
        ("running", {"status": "finished", "ended": None}, RESULT, "interrupted"),
        ("pruned", {"status": "interrupted"}, None, "pruned"),
        ("finished", {"status": "running"}, None, "finished"),
    ],
)
def test_an_unreported_state_is_taken_from_the_record(
    state: str, record: Any, summary: Any, expected: str, manifest: Manifest
) -> None:
    with_states(manifest, [state])
    run(manifest, 0, record, summary)
    manifest.update_from_records()
    assert states(manifest) == [expected]
    if state in ("running", "waiting"):
        assert manifest.members[0]["reason"] == (record or {}).get("reason")


def test_a_trial_without_a_directory_is_waiting(manifest: Manifest) -> None:
    with_states(manifest, ["running"])
    manifest.update_from_records()
    assert states(manifest) == ["waiting"]


def test_the_config_hash_is_taken_from_the_record(manifest: Manifest) -> None:
    with_states(manifest, ["finished", "running", "waiting"])
    for number in (0, 1):
        run(manifest, number, {"status": "finished", "config_hash": f"ran {number}"}, RESULT)
    manifest.update_from_records()
    assert [manifest.members[number]["config_hash"] for number in range(3)] == ["ran 0", "ran 1", None]


def test_a_trial_with_only_a_record_becomes_a_member(manifest: Manifest) -> None:
    """A sweeper that hides its launcher does not add its trials to the manifest."""
    overrides = ["+experiment=linreg", "seed=4", "optimizer.betas=[0.5,0.9]", "run_dir='a, b/3'"]
    run(manifest, 3, {"status": "finished", "overrides": overrides, "config_hash": "ran"}, RESULT)
    run(manifest, 5, None)
    (manifest.directory / "plots").mkdir()
    manifest.update_from_records()
    assert manifest.members == {
        3: {
            "number": 3, "values": {"seed": 4, "optimizer.betas": [0.5, 0.9]}, "overrides": overrides[:-1], "asked_hash": None,
            "config_hash": "ran", "state": "finished", "reason": None,
        }
    }  # fmt: skip
    manifest.add([member(3)])
    assert states(manifest) == ["finished"]


def test_trials_whose_results_are_lost_are_run_again(manifest: Manifest) -> None:
    with_states(manifest, ["finished", "finished", "pruned", "failed"])
    run(manifest, 0, {"status": "finished"}, RESULT)
    run(manifest, 1, {"status": "finished"})
    manifest.rerun_lost()
    assert states(manifest) == ["finished", "waiting", "pruned", "failed"]
    last = {"step": RESULT["steps"]} | {name: RESULT[name] for name in ("metrics", "parameters_sha256")}
    assert manifest.summary(0) == {"format": 1, **RESULT, "selected": last}
    assert manifest.summary(1) == manifest.summary(7) == {}
