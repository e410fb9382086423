"""Ctrl-C and SIGTERM in a training loop: the step under way is finished first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopping_whole(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at Ctrl-C or SIGTERM, and raise KeyboardInterrupt at the second Ctrl-C only.

    A signal for which the program has a handler of its own keeps that.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    # Only the main thread may; a run in another one is stopped as its program sees fit.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in SIGNALS}
    before = {
        number: handler
        for number, handler in found.items()
        if handler is signal.default_int_handler or isinstance(handler, signal.Handlers)
    }
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
