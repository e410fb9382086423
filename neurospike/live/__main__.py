"""Serve the live page: `python -m neurospike.live`."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from neurospike.config.cli import Parser, add_device, guarded
from neurospike.config.devices import choose_device
from neurospike.errors import ConfigError, MissingDependencyError, NeuroSpikeError
from neurospike.pictures import suffixes
from neurospike.training.loading import MODEL, check_sees_pictures, load_trained

from .answering import Answerer
from .watching import WatchedRun

if TYPE_CHECKING:
    from .page import Live

HOST = "127.0.0.1"  # this machine's own browsers only
PORT = 8080
LAST = 8  # seconds that requests under way get to finish after Ctrl-C; a browser's poll takes 4
FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
    '<rect width="32" height="32" rx="7" fill="#0b1020"/>'
    '<path d="M3 21h8l4-14 4 19 3-9h7" fill="none" stroke="#ffb000" stroke-width="3"/></svg>'
)


def main(argv: Sequence[str] | None = None, prog: str = "python -m neurospike.live") -> int:
    """Run the command with these arguments (default: the process's own); return its exit code."""

    def job() -> int:
        flags = _parser(prog).read(argv)
        try:
            from .page import Live
        except ImportError as error:
            raise MissingDependencyError(
                f"the live page needs nicegui ({error}): pip install 'nicegui>=3'"
            ) from error
        port = _port(flags.port)
        if flags.watch is None:
            device = choose_device(flags.device, "auto")
            trained = load_trained(flags.model_path or MODEL, device)
            check_sees_pictures(trained, flags.model_path or MODEL)
            live = Live(Answerer(trained, device), flags.data_path)
        else:
            if flags.model_path is not None:
                raise ConfigError("give --model_path or --watch, not both: a run has its own model")
            live = Live(None, flags.data_path, _watched(flags.watch))
        _serve(live, _free_port(port), flags.no_browser)
        return 0

    return guarded(job)


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        usage=f"{prog} [--model_path FILE | --watch [RUN]] [--KEY VALUE ...]",
        description="Serve a page to this machine's browsers: draw a digit and watch the neurons "
        "answer it, or watch a training run. Ctrl-C stops it.",
    )
    parser.add_argument("--model_path", metavar="FILE", help=f"trained model (default: {MODEL})")
    parser.add_argument(
        "--watch",
        metavar="RUN",
        nargs="?",
        const="runs",
        help="run folder of a training to watch, or a folder of them, whose newest is taken "
        "(default: runs)",
    )
    parser.add_argument(
        "--data_path",
        metavar="DIR",
        help="folder of the data sets, for test pictures; nothing is downloaded (default: where "
        "the training found them)",
    )
    parser.add_argument(
        "--port", metavar="N", default=str(PORT), help="default: %(default)s; 0: a free one"
    )
    parser.add_argument("--no_browser", action="store_true", help="do not open a browser")
    add_device(parser)
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise ConfigError(f"--port: got {text!r}, wanted a whole number of 0 to 65535")
    return int(text)


def _free_port(port: int) -> int:
    """The port, or a free one for 0. Raises NeuroSpikeError if another program has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise NeuroSpikeError(
                f"port {port} cannot be had ({error.strerror}); is another live page open? Give "
                f"another one, such as --port {port + 1}, or --port 0 for a free one"
            ) from None
        return int(probe.getsockname()[1])


def _watched(folder: str) -> WatchedRun:
    run = WatchedRun(folder)
    # The training has priority: the page takes one core, and the time that it leaves.
    torch.set_num_threads(1)
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)
    return run


def _serve(live: "Live", port: int, no_browser: bool) -> None:
    from nicegui import app, background_tasks, ui
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from .origins import OwnOrigin
    from .page import add_page

    # What is slow the first time is done here, so that no visitor has to wait for it.
    suffixes()
    if live.answerer is not None:
        live.answerer.warm()
    add_page(live)
    # Else another site could point its own name at this machine and read the page (DNS rebinding).
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    app.add_middleware(OwnOrigin)
    app.on_startup(lambda: background_tasks.create(_announce(port)))
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    ui.run(
        host=HOST,
        port=port,
        title="NeuroSpike live",
        favicon=FAVICON,
        show=not no_browser,
        reload=False,
        tailwind=False,
        show_welcome_message=False,
        timeout_graceful_shutdown=LAST,
    )


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether to log a record of uvicorn's: not the requests that it ends after Ctrl-C."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, asyncio.CancelledError) or "graceful shutdown" in str(record.msg))


async def _announce(port: int) -> None:
    """Print the page's address once it can be reached."""
    while True:
        try:
            _, connection = await asyncio.open_connection(HOST, port)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        connection.close()
        break
    with contextlib.suppress(OSError):  # the page is there, whoever reads this
        print(f"open http://{HOST}:{port} (Ctrl-C stops it)", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
