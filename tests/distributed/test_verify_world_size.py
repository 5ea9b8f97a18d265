"""`verify world-size`: equal or different bits on several processes, and a kill that ends all of them."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest
from launching import OVERRIDES

from runner import cli
from runner.commands.verify.processes import kill_at, run_to_end, running_process


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # kept runs are removed with the test


def lines(code: int, capsys: pytest.CaptureFixture[str], *overrides: str) -> list[str]:
    """Return the output of `verify world-size` on 1 and 2 processes, which must end with an exit code."""
    capsys.readouterr()
    assert cli.main(["verify", "world-size", *OVERRIDES, *overrides, "--sizes", "1,2"]) == code
    return capsys.readouterr().out.splitlines()


def test_equal_bits_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    added, one, two, verdict = lines(0, capsys)
    assert added == "added    strategy.reduction=exact"
    assert re.fullmatch(r"   1 process    [0-9a-f]{16}…", one)
    assert two == f"   2 processes  {one.split()[-1]}"
    assert verdict == "same: parameters_sha256 is equal on 1 and 2 processes"


@pytest.mark.long
def test_the_same_categories_are_hidden_on_every_number_of_processes(capsys: pytest.CaptureFixture[str]) -> None:
    """Each process hides those of its own rows; with a batch of all rows it takes these once."""
    Path("t.csv").write_text("kind,x,y\n" + "".join(f"{'abc'[i % 3]},{i % 7},{i % 3 + i % 7}\n" for i in range(90)))
    data = ["data=csv", "data.path=t.csv", "data.target=y", "data.split.valid=10", "train.batch_size=null"]
    model = ["model=mlp", "model.widths=[4]", "model.embedding_size=2", "optimizer=adam", "optimizer.lr=0.01"]
    options = ["train.steps=20", "record.plots=false", "record.baselines=[]", "device=cpu"]
    assert cli.main(["verify", "world-size", *data, *model, *options, "--sizes", "1,2"]) == 0
    assert capsys.readouterr().out.endswith("same: parameters_sha256 is equal on 1 and 2 processes\n")


def test_different_bits_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """With the fast reduction every process drops units of its own, and sums are rounded in another order."""
    one, two, *details = lines(1, capsys, "strategy.reduction=fast", "record.hash_every_steps=1")
    assert one.split()[-1] != two.split()[-1]
    why = "strategy.reduction=fast promises agreement only up to rounding"
    assert details[0] == f"differs: parameters_sha256 on 2 processes is not that on 1; {why}"
    assert details[1].startswith("they differ first at step 1, in ")
    assert details[1].endswith("; the parameters of step 0 are equal")


def test_a_kill_ends_every_process_and_the_run_can_be_resumed() -> None:
    run, log = Path("run"), Path("run.log")
    assert kill_at([*OVERRIDES, "launch.processes=2", "run_dir=run"], log, run, 9)
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["world_size"]) == ("running", 2)
    assert [path for path in Path("/proc").glob("[0-9]*") if _is_run_in(path, run.parent)] == []
    run_to_end(["resume=run", "launch.processes=1"], log)  # refused while a process holds the directory
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["resumed"], record["world_size"]) == ("finished", 1, 1)


def _is_run_in(process: Path, folder: Path) -> bool:
    """Whether the process is a run that was started in the folder."""
    try:
        return (process / "cwd").samefile(folder) and b"-m\0runner" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def test_leaving_the_context_ends_the_run() -> None:
    with running_process([*OVERRIDES, "train.steps=1000000", "run_dir=run"], Path("run.log")) as run:
        (pid, *_) = run.process_tree()
    assert run.ended
    assert not Path(f"/proc/{pid}").exists()
