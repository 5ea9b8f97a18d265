"""Write docs/config.md from the schema and the files in conf/: `python docs/generate.py [--check]`.

With --check nothing is written, and the exit code is 1 if the page is out of date.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from runner.config import introspection, validation
from runner.config.hydra_adapter import CONF, options
from runner.config.schema import Config

PAGE = Path(__file__).with_name("config.md")
INTRODUCTION = """\
# Configuration

All keys with their value in `conf/`, their type and their meaning. `make docs` generates this page from
`src/runner/config/schema.py` (types, bounds, meanings) and `conf/` (values). Change those files instead of this page.

Set a key on the command line with `group.key=value`. Choose an option of a group with `group=option`. Write null as `null`.
The shell needs quotes around blanks, parentheses and `*`: `"model.expression=a*exp(-b*x) + c"`.
"""


def page() -> str:
    """Return the whole page."""
    values = _read(CONF / "config.yaml")
    groups = options()
    lines = [INTRODUCTION, "## Top-level keys", "", *_table(Config, values, "")]
    for group, hint in introspection.hints(Config).items():
        variants = introspection.variants(hint)
        if not variants:
            continue
        lines += ["", f"## `{group}`"]
        for kind in dict.fromkeys(variants.values()):
            lines += ["", *_variant(group, kind, groups.get(group, {}))]
    return "\n".join(lines) + "\n"


def _variant(group: str, kind: Any, choices: dict[str, str]) -> list[str]:
    names = [
        name
        for name, found in introspection.variants(introspection.hints(Config)[group]).items()
        if found is kind and name in choices
    ]
    meaning = " ".join((inspect.getdoc(kind) or "").split())
    shared = names != [name for name in names if name == names[0]]
    title = " · ".join(f"`{group}={name}`" for name in names) if names else f"`{group}`"
    values = _read(CONF / group / f"{names[0] if names else 'default'}.yaml")
    lines = [f"### {title}", "", meaning]
    lines += [f"* `{name}`: {choices[name]}" for name in names] if shared else []
    return [*lines, "", *_table(kind, values, f"{group}.")]


def _table(kind: Any, values: dict[str, Any], prefix: str) -> list[str]:
    lines = ["| key | value | type | meaning |", "| --- | --- | --- | --- |", *_rows(kind, values, prefix)]
    return lines if len(lines) > 2 else ["No keys."]


def _rows(kind: Any, values: dict[str, Any], prefix: str) -> list[str]:
    rows = []
    for name, hint in introspection.hints(kind).items():
        nested = introspection.variants(hint)
        if nested and prefix:
            rows += _rows(nested[""], values.get(name, {}), f"{prefix}{name}.")
        elif not nested and not (prefix and name == "name"):
            key = introspection.keys(kind)[name]
            unit = f" [{key.unit}]" if key.unit else ""
            cells = (
                f"`{prefix}{name}`",
                f"`{_shown(values.get(name))}`",
                validation.requirement(hint, key),
                f"{key.meaning}{unit}",
            )
            rows.append(f"| {' | '.join(_escaped(cell) for cell in cells)} |")
    return rows


def _escaped(cell: str) -> str:
    """Return the text of a cell, in which a bar would end it."""
    return cell.replace("|", "\\|")


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _read(file: Path) -> dict[str, Any]:
    """Return the values of an option, including those of the files in its defaults list."""
    from omegaconf import OmegaConf

    content: Any = OmegaConf.to_container(OmegaConf.load(file))
    values: dict[str, Any] = {}
    for name in content.pop("defaults", []):
        if isinstance(name, str) and name != "_self_":
            values |= _read(file.with_name(f"{name}.yaml"))
    values.update(content)
    return values


def main() -> int:
    """Write the page, or check whether it is up to date. Return the exit code."""
    text = page()
    if sys.argv[1:] == ["--check"]:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print("docs/config.md is up to date" if same else "docs/config.md is out of date; run `make docs`")
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
