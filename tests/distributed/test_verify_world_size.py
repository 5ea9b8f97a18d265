"""`verify` on several processes: the same bits, or not, on any number of them, and a kill that ends them all."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest
from launching import WORDS

from runner import cli
from runner.commands.verify.processes import finish, kill_at, started


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # what is kept goes with the test


def lines(code: int, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert cli.main(["verify", "world-size", *WORDS, *words, "--sizes", "1,2"]) == code
    return capsys.readouterr().out.splitlines()


def test_the_bits_are_those_of_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    added, one, two, verdict = lines(0, capsys)
    assert added == "added    strategy.reduction=exact"
    assert re.fullmatch(r"   1 process    [0-9a-f]{16}…", one)
    assert two == f"   2 processes  {one.split()[-1]}"
    assert verdict == "same: parameters_sha256 is equal on 1 and 2 processes"


def test_sums_in_another_order_are_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    """Where bits are not promised: every process drops units of its own, and sums are rounded as they come."""
    one, two, *told = lines(1, capsys, "strategy.reduction=fast", "record.hash_every_steps=1")
    assert one.split()[-1] != two.split()[-1]
    why = "with strategy.reduction=fast answers are promised to agree up to rounding only"
    assert told[0] == f"differs: parameters_sha256 on 2 processes is not that on 1; {why}"
    assert told[1].startswith("they differ first at step 1, in ")
    assert told[1].endswith("; the parameters of step 0 are equal")


def test_a_kill_ends_every_process_and_the_run_goes_on() -> None:
    run, log = Path("run"), Path("run.log")
    assert kill_at([*WORDS, "launch.processes=2", "run_dir=run"], log, run, 9)
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["world_size"]) == ("running", 2)
    assert [path for path in Path("/proc").glob("[0-9]*") if _works_in(path, run.parent)] == []
    finish(["resume=run", "launch.processes=1"], log)  # refused as long as a process holds the directory
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["resumed"], record["world_size"]) == ("finished", 1, 1)


def _works_in(process: Path, folder: Path) -> bool:
    """Whether it is a run that was started in a folder."""
    try:
        return (process / "cwd").samefile(folder) and b"-m\0runner" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def test_a_run_that_is_left_is_ended() -> None:
    with started([*WORDS, "train.steps=1000000", "run_dir=run"], Path("run.log")) as run:
        (pid, *_) = run.family()
    assert run.ended
    assert not Path(f"/proc/{pid}").exists()
