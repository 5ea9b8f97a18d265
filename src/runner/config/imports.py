"""Parts that are the user's own code: "package.module:Class", found, trusted, imported and checked before they are used.

The order matters. What would be imported is found without importing anything, so that the user is asked first; and what was imported
is used only if it is what the configuration says: a class of the right kind that is defined in the trusted package.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from runner.config import trust
from runner.config.files import MIB, read_bytes
from runner.config.validation import shown
from runner.errors import ConfigError

_FORM = re.compile(r"(?!\d)\w+(\.(?!\d)\w+)*:(?!\d)\w+")
_REPORT_SECONDS = 3.0


@dataclass(frozen=True)
class Target:
    """A class or function of the user's, "package.module:Name", and the key that names it."""

    key: str
    text: str

    @property
    def module(self) -> str:
        """Name of the module."""
        return self.text.partition(":")[0]

    @property
    def name(self) -> str:
        """Name in the module."""
        return self.text.partition(":")[2]

    @property
    def package(self) -> str:
        """Name of the top-level package, which is what is trusted."""
        return self.module.partition(".")[0]

    @property
    def shown(self) -> str:
        """Key and text for the beginning of a message."""
        return f"`{self.key}`={self.text}"

    def problems(self, example: str = "my_lab.nets:Net") -> Iterator[str]:
        """Yield the problem of a text that can name nothing. Nothing is searched for."""
        if not _FORM.fullmatch(self.text):
            module, _, last = self.text.replace(":", ".").rpartition(".")
            guess = f"{module}:{last}"
            remedy = (
                f"write {guess}" if ":" not in self.text and _FORM.fullmatch(guess) else "name it where it is defined"
            )
            yield f"`{self.key}` must be package.module:Name, such as {example}, got {shown(self.text)}; {remedy}"
        elif self.package == "__main__":
            yield (
                f"`{self.key}` must be in a module that can be imported again, got {self.text}; "
                "save it in a file of a package, or pass the object itself to runner.run in Python"
            )


def problems(targets: Sequence[Target]) -> list[str]:
    """Return the problems of code that is not there or not trusted, which are found out without importing anything."""
    return [problem for target in targets for problem in _refusals(target)]


def _refusals(target: Target) -> tuple[str, ...]:
    try:
        _require_trust(target)
    except ConfigError as error:
        return error.problems
    return ()


def load(target: Target, base: Any, what: str) -> Any:
    """Return the class of a target, a subclass of `base`; without a base the function, or a class with a call of its own.

    `what` says what is expected, such as "a subclass of torch.nn.Module". Raises `ConfigError` unless its package is trusted and has it.
    """
    if malformed := list(target.problems()):
        raise ConfigError(malformed)
    spec = _require_trust(target)
    module = sys.modules.get(target.module) or _imported(target)
    if not hasattr(module, target.name):
        raise ConfigError(
            f"{target.shown} must exist, but {_file(spec)} has no {target.name}; {_nearest(target, module)}"
        )
    found: Any = getattr(module, target.name)
    kinds = (type,) if base is not None else (type, FunctionType)
    if not isinstance(found, kinds):
        raise ConfigError(f"{target.shown} must be {what}, got {_kind(found)}; name {what}")
    home, own = found.__module__, f"{found.__module__}:{found.__qualname__}"
    if home.partition(".")[0] != target.package:
        raise ConfigError(
            f"{target.shown} must be defined in {target.package}, got an import of {own}; "
            f"define one there, or name {own} and trust {home.partition('.')[0]}"
        )
    if found.__name__ != target.name:
        raise ConfigError(f"{target.shown} must not be another name of {own}; write {own}")
    if base is not None and isinstance(found, type) and not issubclass(found, base):
        bases = ", ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in found.__bases__)
        raise ConfigError(f"{target.shown} must be {what}, got a subclass of {bases}; correct the class")
    return found


def called(
    target: Target, kind: Any, arguments: Mapping[str, Any], filled: Mapping[str, Any], key: str, *first: Any
) -> Any:
    """Return `kind(*first, **arguments)`, with those of the `filled` arguments that its signature has and the user has not given.

    `key` is that of the arguments. Raises `ConfigError` for arguments that do not fit, and for an error of the user's code.
    """
    accepted = dict(list(parameters_of(kind).items())[len(first) :])
    extra = {name: value for name, value in filled.items() if name in accepted and name not in arguments}
    given = {**extra, **arguments}
    if misfits := list(_misfits(target, kind, accepted, given, key)):
        raise ConfigError(misfits)
    name = getattr(kind, "__name__", target.name)
    with explained(target, f"{name}({', '.join(f'{name}={shown(value)}' for name, value in given.items())})"):
        return kind(*first, **given)


def parameters_of(kind: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a callable by name; none of one that does not say."""
    try:
        return dict(inspect.signature(kind).parameters)
    except (TypeError, ValueError):
        return {}


def _misfits(
    target: Target, kind: Any, accepted: Mapping[str, inspect.Parameter], given: Mapping[str, Any], key: str
) -> Iterator[str]:
    """Yield a sentence for each argument that is missing, and for each that the signature does not have."""
    named = {
        name: parameter
        for name, parameter in accepted.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY)
    }
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        for name in (name for name in given if name not in named):
            near = difflib.get_close_matches(name, named, n=1)
            remedy = f"did you mean `{key}.{near[0]}`?" if near else f"it has {', '.join(named) or 'none'}"
            yield f"`{key}.{name}` must be an argument of {target.text}; {remedy}"
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in given:
            yield f"`{key}.{name}` is missing: {target.text} requires it; give it with {key}.{name}=…"


# -------------------------------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def explained(target: Target, doing: str) -> Iterator[None]:
    """Turn an error of the user's code into a `ConfigError` with the user's own line first, and then the error itself."""
    try:
        yield
    except (ConfigError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit as well: a module may exit
        place = place_of(error, target) or _place_outside(error)
        raise ConfigError(f"{target.shown}: {doing} failed{place}: {described(error)}") from error


def described(error: BaseException) -> str:
    """Return kind and text of an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place_of(error: BaseException, target: Target) -> str:
    """Return file, line and function of the user's code in which an error arose, as the end of a phrase; empty for other code."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        return f" in {error.filename}, line {error.lineno}"
    return _last(frame for frame in frames if _is_in(frame.filename, _folders(target.package)))


def _place_outside(error: BaseException) -> str:
    """Return the same for code that is neither torch's nor of this package, such as that of a notebook, which is in no package."""
    known = [*_folders("runner"), *_folders("torch")]
    return _last(frame for frame in traceback.extract_tb(error.__traceback__) if not _is_in(frame.filename, known))


def _last(frames: Iterable[traceback.FrameSummary]) -> str:
    found = list(frames)
    if not found:
        return ""
    frame = found[-1]
    where = f" in {frame.filename}, line {frame.lineno}"
    return where if frame.name == "<module>" else f"{where}, in {frame.name}"


def _is_in(file: str, folders: Sequence[str]) -> bool:
    return any(os.path.realpath(file).startswith(os.path.realpath(folder) + os.sep) for folder in folders)


def _folders(package: str) -> list[str]:
    spec = _spec(package)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return list(spec.submodule_search_locations)
    return [str(Path(spec.origin).parent)] if spec.origin else []


# -------------------------------------------------------------------------------------------------------------- search


def file_of(target: Target) -> Path | None:
    """Return the source file of a target, which need not have been imported; None without one."""
    spec = _spec(target.module)
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def _require_trust(target: Target) -> ModuleSpec:
    """Return where a module is. Raises `ConfigError` unless there is one, in a package that is trusted."""
    places = _places(target.package)
    if len(places) > 1:
        raise ConfigError(
            f"{target.shown} must be in one package {target.package}, but there are two: {' and '.join(places)}; "
            "start in another folder, or remove one of them"
        )
    if _spec(target.package) is None:
        raise _missing_module(target)
    if not trust.is_trusted(target.package):
        would = f"{_file(_spec(target.module) or _spec(target.package))} would be run"
        raise ConfigError(
            f"{target.shown} is code that a configuration may not start by itself: {would}; "
            f"add --trust {target.package} if you know what it does"
        )
    if (found := _spec(target.module)) is None:
        raise _missing_module(target)
    return found


def _places(package: str) -> list[str]:
    """Return where a top-level package is in the current folder and elsewhere, if that is not the same."""
    here = [place for place in sys.path[:1] if place in ("", os.getcwd())]
    found = [PathFinder.find_spec(package, [os.getcwd()]) if here else None, _search(package, trust.installed_path())]
    files = [_file(spec) for spec in found if spec is not None]
    return list(dict.fromkeys(os.path.realpath(file) for file in files))


def _spec(module: str) -> ModuleSpec | None:
    """Return where a module is, without importing it or its packages."""
    if module in sys.modules:
        return sys.modules[module].__spec__
    path: Sequence[str] | None = None
    spec = None
    for end in [*(found.start() for found in re.finditer(r"\.", module)), len(module)]:
        spec = _search(module[:end], path)
        if spec is None:
            return None
        path = spec.submodule_search_locations or []
    return spec


def _search(module: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """Return what Python's finders say of a module in the folders of `path`; None is the search path of the process."""
    importlib.invalidate_caches()  # a file may be new
    for finder in sys.meta_path:
        own = getattr(finder, "find_spec", None)
        spec = own(module, path) if own is not None else None
        if spec is not None:
            return spec  # type: ignore[no-any-return]
    return None


def _file(spec: ModuleSpec | None) -> str:
    """Return the file of a module, or the folder of a package without one."""
    assert spec is not None
    folders = list(spec.submodule_search_locations or [])
    return spec.origin if spec.has_location and spec.origin else (folders[0] if folders else f"{spec.name} of Python")


def _missing_module(target: Target) -> ConfigError:
    if _spec(target.package) is None:
        return ConfigError(
            f"{target.shown} must be in a package that can be imported, but there is no {target.package}; "
            "install it (pip install -e FOLDER), or start in the folder that has it"
        )
    parent, _, last = target.module.rpartition(".")
    spec = _spec(parent)
    names = [info.name for info in pkgutil.iter_modules(spec.submodule_search_locations or [])] if spec else []
    near = difflib.get_close_matches(last, names, n=1)
    remedy = f"did you mean {parent}.{near[0]}:{target.name}?" if near else f"{parent} has {', '.join(names) or 'none'}"
    return ConfigError(f"{target.shown} must be in a module that exists, but there is no {target.module}; {remedy}")


def _nearest(target: Target, module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if isinstance(value, (type, FunctionType)) and value.__module__ == module.__name__
    ]
    near = difflib.get_close_matches(target.name, own, n=1)
    return f"did you mean {target.module}:{near[0]}?" if near else f"it defines {', '.join(own) or 'none'}"


def _kind(value: Any) -> str:
    if isinstance(value, FunctionType):
        return "a function"
    if isinstance(value, ModuleType):
        return "a module"
    return f"a {type(value).__name__}"


# -------------------------------------------------------------------------------------------------------------- import


def _imported(target: Target) -> ModuleType:
    """Import the module of a target. What it prints goes to stderr, and an import that takes long is reported."""
    late = threading.Timer(
        _REPORT_SECONDS, _report, [f"importing {target.module} takes long: {_file(_spec(target.module))}"]
    )
    late.daemon = True
    late.start()
    try:
        with explained(target, f"importing {target.module}"), contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module(target.module)
    finally:
        late.cancel()


def _report(text: str) -> None:
    sys.stderr.write(f"{text}\n")


# -------------------------------------------------------------------------------------------------------------- record


def record_of(target: Target) -> dict[str, str | None]:
    """Return the version of a target's distribution, None without one, and the SHA-256 of its source file, empty without one."""
    file = file_of(target)
    with contextlib.suppress(OSError):
        data = b"" if file is None else read_bytes(file, 64 * MIB, follow=True)
        return {"version": _version(target.package), "sha256": hashlib.sha256(data).hexdigest() if data else ""}
    return {"version": _version(target.package), "sha256": ""}


@cache
def _version(package: str) -> str | None:
    names = importlib.metadata.packages_distributions().get(package, [])
    return importlib.metadata.version(names[0]) if names else None
