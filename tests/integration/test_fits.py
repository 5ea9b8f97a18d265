"""The comparison with SciPy and lmfit: its reference values, and every program's fits of some of its problems."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fits import PROGRAMS, Fit, behind, fits, reference, rows
from mpmath import mp
from problems import DISTANCES, problems

ALL = {problem.name: problem for problem in problems()}


def test_the_command_of_the_readme_needs_no_other_path(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "experiments/fits/fits.py"
    command = [sys.executable, str(script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_there_are_enough_problems_and_each_has_three_starts() -> None:
    assert len({(problem.group, problem.name) for problem in problems()}) == len(problems()) >= 40
    assert all([distance for distance, _ in problem.starts(1)] == list(DISTANCES) for problem in problems())


@pytest.mark.filterwarnings("ignore:overflow")
def test_the_reference_of_a_problem_has_more_digits_than_are_counted() -> None:
    """A root of the gradient with 50 digits, for a formula that mpmath can evaluate."""
    problem = ALL["exponential with constant"]
    mp.dps = 50
    pairs = list(zip(map(mp.mpf, problem.data.tolist()), map(mp.mpf, problem.target.tolist()), strict=True))

    def gradient(a: mp.mpf, b: mp.mpf, c: mp.mpf) -> list[mp.mpf]:
        terms = [(x, mp.exp(-b * x), a * mp.exp(-b * x) + c - y) for x, y in pairs]
        return [sum(r * e for _, e, r in terms), sum(r * x * e for x, e, r in terms), sum(r for *_, r in terms)]

    found = reference(problem)
    exact = mp.findroot(gradient, [mp.mpf(found[name]) for name in "abc"])
    assert [float(found[name] / value - 1) for name, value in zip("abc", exact, strict=True)] == pytest.approx(
        [0, 0, 0], abs=1e-13
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Hill", "diode", "sine", "Lorentz", "Misra1a", "Planck's constant"])
def test_lm_succeeds_at_least_as_often_as_the_others(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    problem = ALL[name]
    found = list(fits(problem, 1, tmp_path))
    assert len(found) == len(PROGRAMS) * len(DISTANCES)
    assert [fit for fit in found if fit.distance == "near" and not fit.success] == []
    assert behind({problem.group: found}) == []


def test_a_fit_is_a_success_if_it_is_right_and_says_so() -> None:
    good, silent, wrong = (Fit("near", "lm", *rest) for rest in ((True, 8.0), (False, 8.0), (True, 3.0)))
    others = [Fit("near", program, True, 5.0) for program in ("curve_fit", "lmfit") for _ in range(3)]
    (row, whole) = rows({"growth": [good, silent, wrong, *others]})
    assert row[:8] == ["growth", "3", "1", "3", "3", "1", "0", "0"]
    assert whole[1:] == row[1:]
    assert behind({"growth": [good, silent, wrong, *others]}) == ["growth", "**all**"]


def test_exchanged_terms_and_signs_do_not_count_as_wrong() -> None:
    peaks, wave = ALL["two Gauss"], ALL["sine"]
    swapped = dict(zip(["b", "n", "t", "a", "m", "s"], [5, 3, -0.7, 3, 6, 1.1], strict=True))
    assert peaks.canonical(swapped) == peaks.canonical(dict(peaks.truth))
    turned = {**wave.truth, "a": -wave.truth["a"], "p": wave.truth["p"] + np.pi}
    assert wave.canonical(turned) == pytest.approx(wave.canonical(dict(wave.truth)))
