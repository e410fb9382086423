"""Time limits for downloads of data sets: without a network an attempt ends in seconds."""

import http.client
import queue
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds until a first answer, and then for each connection and each read.
DOWNLOAD_TIMEOUT = 5.0


def reach(urls: list[str]) -> None:
    """Raise `OSError` unless one of the mirrors answers within `DOWNLOAD_TIMEOUT`.

    In threads, because a socket's timeout bounds neither the look-up of a name nor the number
    of addresses tried one after the other: behind a firewall that drops packets a download
    would try for minutes.
    """
    outcomes: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def ask(url: str) -> None:
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT):
                outcomes.put(None)
        except urllib.error.HTTPError:
            outcomes.put(None)  # an answer, if a bad one: there may be more mirrors to try
        except (OSError, http.client.HTTPException) as error:
            outcomes.put(error)

    for url in urls:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT
    failure: Exception = TimeoutError(f"no answer within {DOWNLOAD_TIMEOUT:g} s")
    for _ in urls:
        try:
            outcome = outcomes.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        if outcome is None:
            return
        failure = outcome
    raise OSError(last_line(failure)) from failure


@contextmanager
def bounded() -> Iterator[None]:
    """Limit the waiting time of other libraries' sockets, which have no limit of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message; torchvision's messages have one per mirror."""
    lines = str(error).split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), type(error).__name__)
