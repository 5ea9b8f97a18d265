"""Runs that an older version left behind: gone on with, done again, verified and compared, with the answers of that day."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import older
import pytest

from runner import cli
from runner.compose import check, saved_values
from runner.config import config_hash


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.mark.parametrize("file", older.config_files(), ids=lambda file: str(file.parent.relative_to(older.FOLDER)))
def test_its_hash_is_the_one_that_it_was_recorded_with(file: Path) -> None:
    recorded = json.loads(file.with_name("run.json").read_text())["config_hash"]
    assert config_hash(check(saved_values(str(file.parent), "resume"))) == recorded


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    run = older.copied("killed", tmp_path)
    assert cli.main([f"resume={run}"]) == 0
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["resumed"]) == ("finished", 1)
    older.agrees(run, older.expected()["ends"]["killed"])


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = older.copied("finished", tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert cli.main([f"resume={run}"]) == 0
    assert "finished is finished at step 20; there is nothing left to do" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_finished_run_goes_further(tmp_path: Path) -> None:
    run = older.copied("finished", tmp_path)
    assert cli.main([f"resume={run}", "train.steps=25"]) == 0
    lines = [json.loads(line) for line in (run / "hashes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 5, 10, 15, 20, 25]
    assert older.end(run)["steps"] == 25


def test_a_finished_run_done_again_ends_as_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = older.copied("finished", tmp_path)
    assert cli.main(["rerun", str(run), "run_dir=again"]) == 0
    told = older.expected()["ends"]["finished"]
    assert older.end(run) == told
    older.agrees(Path("again"), told)
    capsys.readouterr()
    code = cli.main(["diverge", str(run), "again"])
    out = capsys.readouterr().out
    assert "hashes.jsonl" in out
    if older.here():
        assert code == 0, out


def test_a_killed_run_is_compared_as_far_as_it_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = older.copied("killed", tmp_path)
    assert cli.main(["rerun", str(run), "run_dir=again"]) == 0
    older.agrees(Path("again"), older.expected()["ends"]["killed"])
    capsys.readouterr()
    code = cli.main(["diverge", str(run), "again"])
    out = capsys.readouterr().out
    assert out.startswith("A  killed  running, step 16\n")
    if older.here():
        assert code == 0, out


def test_it_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = older.copied("finished", tmp_path)
    code = cli.main(["verify", "rerun", str(run)])
    out = capsys.readouterr().out
    assert f"recorded {older.expected()['ends']['finished']['parameters_sha256'][:16]}…  finished" in out
    if older.here():
        assert code == 0, out


@pytest.mark.parametrize("name", ["sweep_half", "optuna"])
def test_a_sweep_goes_on(name: str, tmp_path: Path) -> None:
    sweep, told = older.copied(name, tmp_path), older.expected()["ends"][name]
    done = {number: (sweep / number / "summary.json").read_bytes() for number in ("0", "1")}
    assert cli.main(["-m", f"resume={sweep}"]) == 0
    manifest = json.loads((sweep / "sweep.json").read_text())
    assert (manifest["status"], manifest["resumed"]) == ("finished", 1)
    assert [member["state"] for member in manifest["members"]] == ["finished"] * 4
    assert done == {number: (sweep / number / "summary.json").read_bytes() for number in done}
    for number, end in told.items():
        older.agrees(sweep / number, end)


def test_trials_of_it_are_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = older.copied("sweep_half", tmp_path)
    code = cli.main(["verify", "sweep", str(sweep), "--members", "1"])
    out = capsys.readouterr().out
    assert "side by side with 1 " in out
    if older.here():
        assert code == 0, out
