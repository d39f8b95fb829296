"""A line every few seconds while one long call says nothing itself."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

SECONDS = 4.0  # between two lines


@contextlib.contextmanager
def alive(
    what: str, say: Callable[[str], object], seconds: float = SECONDS
) -> Iterator[Callable[[str], None]]:
    """Within it, ``say`` is told every few seconds what goes on, and for how long.

    It gives a function that names what comes next; the lines keep their interval. On a terminal
    ``say=print`` is one line of stderr that is written over, and gone at the end.
    """
    over = say is print and sys.stderr.isatty()
    tell = _write_over if over else say
    done = threading.Event()
    began = time.monotonic()

    def then(next_one: str) -> None:
        nonlocal what, began
        what = next_one
        began = time.monotonic()

    def beat() -> None:
        while not done.wait(seconds):
            tell(f"{what}: {time.monotonic() - began:.0f} s so far")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield then
    finally:
        done.set()
        thread.join()
        if over:
            _write_over("")


def _write_over(text: str) -> None:
    """Put a text in place of the terminal's last line."""
    sys.stderr.write(f"\r{text}\x1b[K")
    sys.stderr.flush()
