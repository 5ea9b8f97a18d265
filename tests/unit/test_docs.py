"""docs/config.md is what the schema and conf/ say."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_keys_is_up_to_date() -> None:
    """Mend with `make docs`."""
    page = runpy.run_path(str(DOCS / "generate.py"))["page"]()
    assert (DOCS / "config.md").read_text(encoding="utf-8") == page
