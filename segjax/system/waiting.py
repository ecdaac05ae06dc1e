"""Say on standard error what this process waits for, if it waits long."""

import contextlib
import sys
import threading
from collections.abc import Iterator

SECONDS = 5.0  # a shorter wait is not reported


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """Print "WHAT ..." once if the block takes longer than SECONDS."""

    def report() -> None:
        print(f"{what} ...", file=sys.stderr, flush=True)  # noqa: T201

    timer = threading.Timer(SECONDS, report)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
