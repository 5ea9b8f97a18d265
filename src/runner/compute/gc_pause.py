"""A pause of the garbage collector around imports, which take most of the time that a process spends outside training."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Pause garbage collection while entered. What a first import of torch inside creates is never collected."""
    # Each collection walks all objects that torch defines. Freezing them also spares later collections and the one at
    # exit, which together took a fifth of a small run. Older garbage is collected first, or it would be frozen too.
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
