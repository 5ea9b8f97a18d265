"""Starting quickly: what a process does before and after training is mostly imports."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """No garbage collection meanwhile: it walks all that torch defines again and again.

    Whoever imports torch in here is spared that later as well, and once more at the end of the process, which took a fifth of
    a small run: what is there then counts as in use for good. Garbage of before is collected first.
    """
    enabled, first = gc.isenabled(), "torch" not in sys.modules
    if first:
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if first and "torch" in sys.modules:
            gc.freeze()
        if enabled:
            gc.enable()
