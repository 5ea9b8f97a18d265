"""Problems of curve fitting in groups: a formula, where it is measured, the parameters that made the data, and the noise.

The numbers of a problem come from seeded streams. Nothing depends on what any program finds.
"""

from __future__ import annotations

import math
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[1] / "nist"))  # the reader of NIST's files belongs to that study
from strd import read

Array = NDArray[np.float64]
Values = dict[str, float]

NAMES: dict[str, Any] = {
    **{name: getattr(np, name) for name in ("exp", "log", "sqrt", "sin", "cos", "tanh", "cosh")},
    "atan": np.arctan, "pi": np.pi,
}  # fmt: skip
"""Functions and constants of a formula, as NumPy has them."""

DISTANCES = {"near": 1.2, "medium": 2.0, "far": 10.0}
"""Distance of a start → the factor by which each parameter may be too large or too small."""

NARROW = 0.1
"""Exponent of that factor for parameters that are read off a plot: the place of a peak, a period, a transition temperature."""


@dataclass(frozen=True)
class Problem:
    """One data set and the formula to fit."""

    group: str
    name: str
    expression: str
    """Formula of the columns and the parameters, in the syntax of both Python and `model.expression`."""
    truth: Mapping[str, float]
    """Parameters that made the data, or the certified ones."""
    columns: Mapping[str, Array]
    noise: float = 0.02
    """Standard deviation of the noise, relative to that of the values without noise."""
    narrow: Sequence[str] = ()
    """Parameters whose starts are nearer than those of the others."""
    canonical: Callable[[Values], Values] = field(default=dict)
    """Returns one and the same of several equivalent sets of parameters, such as two exchanged peaks."""
    measured: Array | None = None
    """The target of a published set; without one it is computed, and noise added."""
    given: Mapping[str, Values] = field(default_factory=dict)
    """Published starts by distance."""

    @cached_property
    def parameters(self) -> list[str]:
        """Names of the parameters, in order."""
        return list(self.truth)

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The formula as a Python function of the columns [columns, rows] (or [rows]) and the parameters, for SciPy and lmfit."""
        unpack = f"{', '.join(self.columns)} = columns\n    " if len(self.columns) > 1 else ""
        head = "columns" if unpack else next(iter(self.columns))
        scope = dict(NAMES)
        exec(f"def function({', '.join([head, *self.parameters])}):\n    {unpack}return {self.expression}", scope)
        function: Callable[..., Any] = scope["function"]
        return function

    @cached_property
    def data(self) -> Array:
        """The columns as one array: [columns, rows], or [rows] if there is one."""
        columns = np.array(list(self.columns.values()))
        return columns[0] if len(columns) == 1 else columns

    @cached_property
    def target(self) -> Array:
        """Values to fit [rows]."""
        if self.measured is not None:
            return self.measured
        exact = self.function(self.data, *self.truth.values())
        noise: Array = self.noise * float(np.std(exact)) * _stream(self, "noise").normal(size=len(exact))
        return exact + noise  # type: ignore[no-any-return]

    def starts(self, draws: int) -> list[tuple[str, Values]]:
        """Return pairs of distance and start values, `draws` for each distance; published ones come first."""
        found = []
        for distance, factor in DISTANCES.items():
            stream = _stream(self, distance)
            for draw in range(draws):
                exponents = stream.uniform(-1, 1, len(self.truth))
                start = {
                    name: float(value * factor ** (exponent * (NARROW if name in self.narrow else 1.0)))
                    for (name, value), exponent in zip(self.truth.items(), exponents, strict=True)
                }
                found.append((distance, self.given.get(distance, start) if draw == 0 else start))
        return found


def _stream(problem: Problem, name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{problem.group}/{problem.name}/{name}".encode()))


# ------------------------------------------------------------------------------------------ equivalent sets of parameters


def positive(*names: str) -> Callable[[Values], Values]:
    """Return a function that makes some parameters positive, whose sign changes nothing."""
    return lambda values: {name: abs(value) if name in names else value for name, value in values.items()}


def ordered(*terms: Sequence[str]) -> Callable[[Values], Values]:
    """Return a function that sorts exchangeable terms by their last parameter, largest first."""

    def canonical(values: Values) -> Values:
        numbers = sorted(([values[name] for name in term] for term in terms), key=lambda term: -term[-1])
        exchanged = {
            name: value
            for term, found in zip(terms, numbers, strict=True)
            for name, value in zip(term, found, strict=True)
        }
        return {**values, **exchanged}

    return canonical


def wave(amplitude: str, phase: str, frequency: str) -> Callable[[Values], Values]:
    """Return a function that makes amplitude and frequency of a sine positive, and its phase lie in [0, 2π)."""

    def canonical(values: Values) -> Values:
        size, angle, rate = (values[name] for name in (amplitude, phase, frequency))
        if rate < 0:
            size, angle, rate = -size, -angle, -rate
        angle = angle if size >= 0 else angle + math.pi
        return {**values, amplitude: abs(size), phase: angle % (2 * math.pi), frequency: rate}

    return canonical


# ----------------------------------------------------------------------------------------------------------- the problems


def _x(first: float, last: float, rows: int) -> dict[str, Array]:
    return {"x": np.linspace(first, last, rows)}


def _log(first: float, last: float, rows: int) -> dict[str, Array]:
    return {"x": np.geomspace(first, last, rows)}


def _own() -> list[Problem]:
    two = ordered(("a", "k"), ("b", "m"))
    gauss, lorentz = "a*exp(-((x-m)/s)**2/2)", "a*s**2/((x-m)**2+s**2)"
    return [
        Problem("growth", "exponential", "a*exp(b*x)", dict(a=2, b=0.6), _x(0, 5, 40)),
        Problem("growth", "logistic", "K/(1+exp(-r*(x-m)))", dict(K=50, r=0.8, m=6), _x(0, 14, 40)),
        Problem("growth", "Gompertz", "K*exp(-b*exp(-r*x))", dict(K=9, b=5, r=0.6), _x(0, 12, 40)),
        Problem("growth", "von Bertalanffy", "L*(1-exp(-k*(x-t)))", dict(L=60, k=0.3, t=0.5), _x(1, 15, 40)),
        Problem("growth", "Weibull", "a-b*exp(-c*x**d)", dict(a=70, b=60, c=0.01, d=2.4), _x(0, 12, 40)),
        Problem("decay", "exponential", "a*exp(-b*x)", dict(a=100, b=0.7), _x(0, 6, 30)),
        Problem("decay", "exponential with constant", "a*exp(-b*x)+c", dict(a=3, b=0.7, c=1), _x(0, 5, 60)),
        Problem("decay", "lifetime", "a*exp(-x/tau)+c", dict(a=800, tau=12, c=30), _x(0, 60, 80)),
        Problem("decay", "two exponentials", "a*exp(-k*x)+b*exp(-m*x)", dict(a=4, k=2.5, b=2, m=0.3), _x(0, 8, 100), 0.005, canonical=two),
        Problem("decay", "second order", "c/(1+k*c*x)", dict(c=0.5, k=3), _x(0, 20, 30)),
        Problem("peaks", "Gauss", gauss, dict(a=5, m=4, s=0.8), _x(0, 10, 80), narrow=["m"], canonical=positive("s")),
        Problem("peaks", "Gauss on a line", f"{gauss}+c+d*x", dict(a=120, m=520, s=6, c=40, d=0.05), _x(480, 560, 100), narrow=["m"], canonical=positive("s")),
        Problem("peaks", "Lorentz", lorentz, dict(a=2, m=7, s=0.5), _x(0, 14, 90), narrow=["m"], canonical=positive("s")),
        Problem(
            "peaks", "two Gauss", "a*exp(-((x-m)/s)**2/2)+b*exp(-((x-n)/t)**2/2)", dict(a=5, m=3, s=0.7, b=3, n=6, t=1.1), _x(0, 10, 120),
            narrow=["m", "n"], canonical=lambda p: ordered(("a", "s", "m"), ("b", "t", "n"))(positive("s", "t")(p)),
        ),
        Problem("peaks", "log-normal", "a*exp(-(log(x/m)/s)**2/2)", dict(a=30, m=4, s=0.4), _x(0.5, 15, 60), canonical=positive("s")),
        Problem("peaks", "sech squared", "a/cosh((x-m)/s)**2", dict(a=3, m=25, s=4), _x(0, 60, 80), narrow=["m"], canonical=positive("s")),
        Problem("saturation", "Michaelis-Menten", "V*x/(K+x)", dict(V=4.1, K=14), _log(1, 300, 12)),
        Problem("saturation", "Hill", "V*x**h/(K**h+x**h)", dict(V=95, K=20, h=1.8), _log(1, 500, 20)),
        Problem("saturation", "substrate inhibition", "V*x/(K+x+x**2/J)", dict(V=10, K=3, J=40), _log(0.2, 300, 25)),
        Problem("saturation", "Langmuir with background", "q*k*x/(1+k*x)+c*x", dict(q=2.5, k=0.4, c=0.01), _x(0, 60, 30)),
        Problem("saturation", "tight binding", "m*((e+x+k)-sqrt((e+x+k)**2-4*e*x))/(2*e)", dict(m=1, e=5, k=0.6), _x(0, 20, 30)),
        Problem("saturation", "inhibition", "V*s/(K*(1+i/J)+s)", dict(V=12, K=4, J=2.5), {"s": np.tile(np.geomspace(0.5, 60, 8), 4), "i": np.repeat([0.0, 1, 3, 10], 8)}),
        Problem("decades", "diode", "I*(exp(x/(n*0.025852))-1)", dict(I=3e-12, n=1.4), _x(0.3, 0.75, 40), 0.005),
        Problem("decades", "diode with shunt", "I*(exp(x/(n*0.025852))-1)+x/R", dict(I=2e-9, n=1.8, R=4e4), _x(0.05, 0.6, 50), 0.005),
        Problem("decades", "Arrhenius", "A*exp(-E/(8.314462618*x))", dict(A=4e9, E=62000), _x(290, 360, 25), 0.005, narrow=["E"]),
        Problem("decades", "Arrhenius about a reference", "k*exp(-E/8.314462618*(1/x-1/320))", dict(k=2e-3, E=62000), _x(290, 360, 25)),
        Problem("decades", "Vogel-Fulcher", "A*exp(B/(x-T))", dict(A=2e-4, B=900, T=180), _x(240, 380, 40), 0.002, narrow=["T"]),
        Problem("decades", "Antoine", "exp(A-B/(C+x))", dict(A=16.6, B=3640, C=224), _x(20, 110, 40), 0.002, narrow=["A", "B", "C"]),
        Problem("waves", "sine", "a*sin(w*x+p)+c", dict(a=2, w=1.7, p=0.6, c=0.5), _x(0, 12, 100), narrow=["w"], canonical=wave("a", "p", "w")),
        Problem("waves", "period", "a*sin(2*pi*x/T+p)", dict(a=15, T=365, p=1.2), _x(0, 1000, 120), narrow=["T"], canonical=positive("a")),
        Problem("waves", "damped", "a*exp(-g*x)*cos(w*x+p)", dict(a=1, g=0.2, w=3, p=0.4), _x(0, 12, 150), narrow=["w"], canonical=wave("a", "p", "w")),
        Problem("waves", "fringes", "c*(1+v*cos(2*pi*x/L+p))", dict(c=100, v=0.6, L=0.6, p=0.5), _x(0, 2, 80), narrow=["L"]),
        Problem("waves", "resonance", "a/sqrt((x**2-w**2)**2+(g*x)**2)", dict(a=8, w=4, g=0.5), _x(0.5, 8, 90), narrow=["w"], canonical=positive("g")),
        Problem("stretched", "relaxation", "a*exp(-(x/tau)**b)", dict(a=1, tau=3, b=0.6), _x(0, 20, 80)),
        Problem("stretched", "relaxation over decades", "a*exp(-(x/tau)**b)+c", dict(a=2, tau=0.05, b=0.5, c=0.1), _log(1e-4, 10, 60)),
        Problem("stretched", "Avrami", "a*(1-exp(-(k*x)**n))", dict(a=80, k=0.1, n=2.5), _x(0, 25, 50)),
        Problem("stretched", "Weibull survival", "exp(-(x/s)**k)", dict(s=900, k=1.7), _x(0, 2500, 40)),
        Problem("dose-response", "three parameters", "t/(1+(x/e)**h)", dict(t=95, e=40, h=0.8), _log(0.1, 1e4, 24)),
        Problem("dose-response", "four parameters", "b+(t-b)/(1+(x/e)**h)", dict(b=5, t=95, e=40, h=1.2), _log(0.1, 1e4, 30)),
        Problem("dose-response", "four parameters, from 0", "b+(t-b)/(1+(x/e)**h)", dict(b=3, t=70, e=8, h=0.8), {"x": np.array([0, 0, 0, *np.geomspace(0.1, 3e3, 27)])}),
        Problem("dose-response", "in logarithms", "b+(t-b)/(1+10**((e-x)*h))", dict(b=2, t=100, e=-6.5, h=1.1), _x(-10, -3, 30), narrow=["e"]),
        Problem("dose-response", "hyperbolic tangent", "t*(1+tanh((x-m)/s))/2", dict(t=1, m=5, s=1.5), _x(0, 10, 40)),
        Problem("dose-response", "five parameters", "b+(t-b)/(1+(x/e)**h)**g", dict(b=5, t=95, e=30, h=1.4, g=0.7), _log(0.05, 1e4, 40), 0.005),
        Problem("powers", "power law", "a*x**b", dict(a=3, b=1.6), _x(1, 30, 30)),
        Problem("powers", "power law with constant", "a*x**b+c", dict(a=0.5, b=2.2, c=40), _x(1, 20, 40)),
        Problem("powers", "falling power", "a*x**(-b)+c", dict(a=20, b=1.4, c=3), _x(1, 25, 40)),
        Problem("powers", "allometry", "a*x**b", dict(a=0.07, b=0.75), _log(0.02, 5e3, 40)),
        Problem("powers", "shifted square root", "sqrt(a*x+b)", dict(a=3, b=7), _x(0, 40, 40)),
        Problem("powers", "critical point", "a*(1-x/T)**b", dict(a=2, T=650, b=0.33), _x(300, 600, 40), 0.01, narrow=["T"]),
        Problem("rational", "quotient", "(a+b*x)/(1+c*x)", dict(a=1, b=2, c=0.3), _x(0, 20, 40)),
        Problem("rational", "quadratic quotient", "(a+b*x+c*x**2)/(1+d*x)", dict(a=10, b=4, c=0.3, d=0.2), _x(0, 20, 50), 0.005),
        Problem("rational", "Steinhart-Hart", "1/(a+b*log(x)+c*log(x)**3)", dict(a=1.1e-3, b=2.4e-4, c=8e-8), _log(500, 4e4, 40), 0.0005),
        Problem("rational", "lens", "1/(1/f-1/x)+d", dict(f=0.2, d=0.05), _x(0.4, 2, 30)),
        Problem("linear", "line", "a*x+b", dict(a=0.9, b=1.4), _x(1, 100, 100), 0.1),
        Problem("linear", "cubic", "a+b*x+c*x**2+d*x**3", dict(a=3, b=-2, c=0.5, d=0.1), _x(-5, 5, 60)),
        Problem("linear", "fifth degree", "a+b*x+c*x**2+d*x**3+e*x**4+f*x**5", dict(a=3, b=-2, c=0.5, d=0.1, e=0.05, f=-0.01), _x(-4, 6, 80), 0.005),
        Problem("linear", "van Deemter", "a+b/x+c*x", dict(a=1.5, b=25, c=0.03), _x(5, 100, 40)),
        Problem("linear", "harmonics", "a*cos(x)+b*sin(x)+c*cos(2*x)+d*sin(2*x)", dict(a=2, b=1, c=0.5, d=0.3), _x(0, 7, 60)),
        Problem("units", "Planck's constant", "h*x+c", dict(h=6.6e-34, c=-3.4e-19), _x(5e14, 1.2e15, 20)),
        Problem("units", "femtoseconds", "a*exp(-x/tau)", dict(a=3e-9, tau=2e-13), _x(0, 1e-12, 50)),
        Problem("units", "gigahertz", lorentz, dict(a=4e-6, m=5.1e9, s=2e7), _x(4.9e9, 5.3e9, 90), narrow=["m"], canonical=positive("s")),
        Problem("units", "astronomical", "G*x/(K+x)", dict(G=7e22, K=3e17), _log(1e16, 1e19, 30)),
        Problem("units", "nanomolar", "V*x/(K+x)", dict(V=2.5e-6, K=3e-9), _log(1e-10, 1e-6, 20)),
    ]  # fmt: skip


def _nist() -> list[Problem]:
    """Return NIST's nonlinear sets: the far start is NIST's first one, the medium start its second one."""
    found = []
    for file in sorted((Path(__file__).parents[1] / "nist" / "data").glob("*.dat")):
        reference = read(file)
        if reference.linear:
            continue
        names = [parameter.name for parameter in reference.parameters]
        numbers = np.array([[float(cell) for cell in row] for row in reference.rows]).T
        level = re.search(r"(\w+) Level of Difficulty", file.read_text(encoding="latin-1"))
        assert level is not None
        found.append(
            Problem(
                f"NIST, {level[1].lower()}",
                reference.name,
                reference.expression,
                {parameter.name: parameter.value for parameter in reference.parameters},
                dict(zip(reference.columns[1:], numbers[1:], strict=True)),
                measured=np.log(numbers[0]) if reference.log_response else numbers[0],
                given={
                    distance: {n: p.starts[which] for n, p in zip(names, reference.parameters, strict=True)}
                    for distance, which in (("medium", 1), ("far", 0))
                },
            )
        )
    return found


def problems() -> list[Problem]:
    """Return all problems, ordered by group."""
    return [*_own(), *_nist()]
