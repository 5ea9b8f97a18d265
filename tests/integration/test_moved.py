"""A table, a run or a sweep that is in another place than before is used there; other content is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import runner
from runner import cli

TABLE = "x,y\n" + "".join(f"{i},{2 * i + i % 3}\n" for i in range(20))
OTHER = TABLE + "20,0\n"
SHA, OTHER_SHA = (hashlib.sha256(text.encode()).hexdigest() for text in (TABLE, OTHER))
CSV = ["data=csv", "data.path=t.csv", "data.target=y", "data.standardize=true", "optimizer.lr=0.1", "train.steps=5", "record.plots=false", "device=cpu", "device.threads=1"]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(TABLE)
    Path("other.csv").write_text(OTHER)


def answer(run: str) -> str:
    return str(json.loads(Path(run, "summary.json").read_text())["parameters_sha256"])


def test_the_record_has_the_hash_of_the_data() -> None:
    runner.run(None, [*CSV, "run_dir=a"])
    assert json.loads(Path("a/run.json").read_text())["data_sha256"] == SHA


def test_a_table_that_was_moved_is_named_anew_on_resume_and_rerun(capsys: pytest.CaptureFixture[str]) -> None:
    runner.run(None, [*CSV, "train.steps=8", "run_dir=whole"])
    runner.run(None, [*CSV, "run_dir=a"])
    Path("t.csv").rename("moved.csv")
    missing = "`data.path` must be a readable file, but 't.csv' does not exist; give its path with data.path=PATH, relative to the working directory"
    for command in (["resume=a", "train.steps=8"], ["rerun", "a"]):
        assert cli.main(command) == 2
        assert capsys.readouterr().err == f"error: {missing}\n"
    said = f"note: `data.path`=moved.csv has the content that a was trained on, SHA-256 {SHA[:8]}…\n"
    assert cli.main(["resume=a", "train.steps=8", "data.path=moved.csv"]) == 0
    assert said in capsys.readouterr().out
    assert said in Path("a/run.log").read_text()
    assert "path: moved.csv" in Path("a/config.yaml").read_text()
    assert answer("a") == answer("whole")
    assert cli.main(["resume=a", "train.steps=9"]) == 0  # it is where config.yaml says
    assert "has the content" not in capsys.readouterr().out
    assert cli.main(["rerun", "whole", "data.path=moved.csv", "run_dir=b"]) == 0
    assert said.replace("that a was", "that whole was") in capsys.readouterr().out
    assert answer("b") == answer("whole")


@pytest.mark.parametrize(
    ("command", "trained"), [(["resume=a", "train.steps=8"], "step_5"), (["rerun", "a", "run_dir=b"], "a")]
)
@pytest.mark.parametrize("typed", [True, False])
def test_a_table_of_other_content_is_refused(
    command: list[str], trained: str, typed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.run(None, [*CSV, "run_dir=a"])
    before = {path: path.read_bytes() for path in Path("a").rglob("*") if path.is_file()}
    if not typed:
        Path("t.csv").write_text(OTHER)
    capsys.readouterr()
    assert cli.main([*command, *(["data.path=other.csv"] if typed else [])]) == 2
    assert capsys.readouterr().err == (
        f"error: `data.path` must have the content that {trained} was trained on, SHA-256 {SHA[:8]}…, got {OTHER_SHA[:8]}…; "
        "give the file with that content, or start a new run\n"
    )
    assert before == {path: path.read_bytes() for path in Path("a").rglob("*") if path.is_file()}
    assert not Path("b").exists()


def test_a_run_without_a_checkpoint_also_keeps_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    runner.run(None, [*CSV, "run_dir=a"])
    shutil.rmtree("a/checkpoints")
    Path("a/metrics.jsonl").unlink()
    assert cli.main(["resume=a", "data.path=other.csv"]) == 2
    assert f"that a was trained on, SHA-256 {SHA[:8]}…, got {OTHER_SHA[:8]}…" in capsys.readouterr().err


def test_the_hash_of_an_older_run_is_that_of_its_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    runner.run(None, [*CSV, "run_dir=a"])
    record = json.loads(Path("a/run.json").read_text())
    del record["data_sha256"]
    Path("a/run.json").write_text(json.dumps(record))
    assert cli.main(["rerun", "a", "data.path=other.csv"]) == 2
    assert f"that a was trained on, SHA-256 {SHA[:8]}…, got {OTHER_SHA[:8]}…" in capsys.readouterr().err
    shutil.rmtree("a/checkpoints")  # nothing is known
    assert cli.main(["rerun", "a", "data.path=other.csv"]) == 0


def test_the_files_of_parts_move_too(capsys: pytest.CaptureFixture[str]) -> None:
    Path("v.csv").write_text("x,y\n1,2\n2,4\n")
    runner.run(None, [*CSV, "data.valid_path=v.csv", "run_dir=a"])
    Path("v.csv").rename("w.csv")
    capsys.readouterr()
    assert cli.main(["resume=a", "train.steps=8"]) == 2
    assert "'v.csv' does not exist; give its path with data.valid_path=PATH" in capsys.readouterr().err
    assert cli.main(["resume=a", "train.steps=8", "data.valid_path=w.csv"]) == 0
    assert "note: `data.valid_path`=w.csv has the content that a was trained on" in capsys.readouterr().out
    assert cli.main(["resume=a", "train.steps=9", "data.valid_path=other.csv"]) == 2
    assert "`data.path` and `data.valid_path` must have the content that step_8" in capsys.readouterr().err


def test_a_repeated_run_may_have_other_files() -> None:
    """A further file, or another source, is a change that the user asks for."""
    runner.run(None, [*CSV, "run_dir=a"])
    assert cli.main(["rerun", "a", "data.test_path=other.csv", "run_dir=b"]) == 0
    assert "test/rmse" in json.loads(Path("b/summary.json").read_text())["metrics"]
    assert cli.main(["rerun", "a", "data=line", "run_dir=c"]) == 0


def test_a_run_is_moved_as_a_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    runner.run(None, [*CSV, "train.steps=8", "run_dir=whole"])
    runner.run(None, [*CSV, f"run_dir={tmp_path}/a"])
    Path("there").mkdir()
    shutil.move("a", "there/b")
    assert cli.main(["resume=there/b", "train.steps=8"]) == 0
    assert not Path("a").exists()
    assert answer("there/b") == answer("whole")
    assert "run      there/b\n" in capsys.readouterr().out
    assert cli.main(["rerun", "there/b", "run_dir=c"]) == 0
    assert answer("c") == answer("whole")


def test_a_sweep_is_moved_as_a_whole(tmp_path: Path) -> None:
    """Its trials that are lost are trained again in the new place, and others go on there."""
    sweep = [*CSV, "optimizer.lr=0.1,0.2", f"run_dir={tmp_path}/s"]
    runner.multirun(None, sweep)
    expected = [answer("s/0"), answer("s/1")]
    shutil.rmtree("s/1")
    Path("there").mkdir()
    shutil.move("s", "there/s")
    assert cli.main(["-m", "resume=there/s"]) == 0
    assert [answer("there/s/0"), answer("there/s/1")] == expected
    assert not Path("s").exists()
    assert cli.main(["resume=there/s/1", "train.steps=6"]) == 0


@pytest.mark.parametrize("launcher", ["vmap", "basic"])
def test_a_sweep_goes_on_with_a_table_that_was_moved(launcher: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One trial is gone and one is extended; both are trained on the file in its new place."""
    plugin = f"hydra/launcher={launcher}"
    runner.multirun(None, [*CSV, plugin, "optimizer.lr=0.1,0.2", "run_dir=whole"])
    shutil.copytree("whole", "s")
    shutil.rmtree("s/1")
    manifest = json.loads(Path("s/sweep.json").read_text())
    Path("t.csv").rename("moved.csv")
    capsys.readouterr()
    assert cli.main(["-m", "resume=s", "data.path=other.csv"]) == 2
    assert capsys.readouterr().err == (
        f"error: `data.path` must have the content that s was trained on, SHA-256 {SHA[:8]}…, got {OTHER_SHA[:8]}…; "
        "give the file with that content, or start a new run\n"
    )
    assert json.loads(Path("s/sweep.json").read_text()) == manifest
    assert cli.main(["-m", "resume=s", "data.path=moved.csv"]) == 0
    assert (
        f"note: `data.path`=moved.csv has the content that s was trained on, SHA-256 {SHA[:8]}…\n"
        in capsys.readouterr().out
    )
    assert [answer("s/0"), answer("s/1")] == [answer("whole/0"), answer("whole/1")]
    assert "path: moved.csv" in Path("s/1/config.yaml").read_text()
    shutil.rmtree("s/0")
    assert cli.main(["-m", "resume=s"]) == 0  # it is remembered
    assert answer("s/0") == answer("whole/0")


def test_an_interrupted_trial_goes_on_with_a_table_that_was_moved() -> None:
    for plugin in ("hydra/launcher=vmap", "hydra/launcher=basic"):
        runner.multirun(None, [*CSV, plugin, "optimizer.lr=0.1,0.2", "run_dir=whole"])
        expected = answer("whole/1")
        shutil.move("whole", "s")
        record = json.loads(Path("s/1/run.json").read_text())
        Path("s/1/run.json").write_text(json.dumps({**record, "status": "interrupted", "ended": None}))
        Path("s/1/summary.json").unlink()
        Path("t.csv").rename("moved.csv")
        assert cli.main(["-m", "resume=s", "data.path=moved.csv"]) == 0
        assert answer("s/1") == expected
        assert "path: moved.csv" in Path("s/1/config.yaml").read_text()
        Path("moved.csv").rename("t.csv")
        shutil.rmtree("s")


def test_a_sweep_over_tables_keeps_their_places(capsys: pytest.CaptureFixture[str]) -> None:
    runner.multirun(None, [*CSV, "data.path=t.csv,other.csv", "run_dir=s"])
    assert cli.main(["-m", "resume=s", "data.path=t.csv"]) == 2
    assert (
        "`data.path` must not change for a sweep whose trials differ in it; put the files back"
        in capsys.readouterr().err
    )
