"""What the commands share: flags made from the configuration, and errors reported in a line."""

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from neurospike.errors import ConfigError, NeuroSpikeError

from .words import nearest_key

NOBODY_READS = 141  # exit code: 128 and the number of SIGPIPE
# Keys of a section that are also flags by their last name alone.
SHORT = (
    "training.epochs",
    "training.batch_size",
    "training.learning_rate",
    "model.num_steps",
    "model.hidden_size",
)


def parse(
    argv: Sequence[str] | None, prog: str, description: str
) -> tuple[Path | None, dict[str, str]]:
    """Read the flags of training: the config file, if one was named, and values by dotted key.

    The values are text. `--help` prints and exits. Raises ConfigError as `Parser.read` does.
    """
    values = vars(_training_parser(prog, description).read(argv))
    config = values.pop("config", None)
    return (None if config is None else Path(config)), values


def add_backend(parser: argparse.ArgumentParser, what: str = "what computes the neurons") -> None:
    """Let a command take `--backend`."""
    choices = "auto (default), reference, numba or triton"
    parser.add_argument("--backend", metavar="NAME", default="auto", help=f"{what}: {choices}")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Let a command take `--device`."""
    choices = "auto (default: the GPU if the backend runs there), cpu, cuda or cuda:N"
    parser.add_argument(
        "--device", metavar="NAME", default="auto", help=f"where to compute: {choices}"
    )


def guarded(job: Callable[[], int]) -> int:
    """Run a command and return its exit code, 2 after an error of the user's, 130 after Ctrl-C.

    Such errors are one or two lines on stderr. Any other exception is a bug of ours and keeps
    its traceback. A command whose output nobody reads any more, as behind `| head`, ends silently
    with 141, the code that a shell reports for a program that the signal SIGPIPE ended.
    """
    with _standard_error(), _printable():
        try:
            return _written_out(job)
        except BrokenPipeError:
            code = NOBODY_READS
        except (NeuroSpikeError, OSError) as error:
            code = 2
            _tell(f"error: {error}")
        except KeyboardInterrupt as interrupt:
            code = 130
            _tell(f"interrupted{f'; {interrupt}' if interrupt.args else ''}")
        _drop_unwritten()
        return code


def _written_out(job: Callable[[], int]) -> int:
    """Run a command and flush its output here, where a failure to write can still be reported."""
    try:
        code = job()
    except SystemExit:  # after --help
        _flush()
        raise
    _flush()
    return code


def _flush() -> None:
    if sys.stdout is not None:  # None where a shell closed it
        sys.stdout.flush()


def _tell(text: str) -> None:
    """Print a line on stderr, if that can be written."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def _drop_unwritten() -> None:
    """Discard what an output could not write: Python would try again, and fail, as it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


@contextmanager
def _standard_error() -> Iterator[None]:
    """Discard what is printed on stderr if a shell closed it: print would write it to stdout."""
    if sys.stderr is not None:
        yield
        return
    nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (closed below)
    with nowhere, contextlib.redirect_stderr(nowhere):
        yield


@contextmanager
def _printable() -> Iterator[None]:
    r"""Print characters that an output's encoding lacks, as in file names, as escapes: `\u6570`."""
    streams = [one for one in (sys.stdout, sys.stderr) if isinstance(one, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)


def check_target(flag: str, path: str) -> None:
    """Raise ConfigError for a file that a flag names and that plainly cannot be written there.

    Commands check this before they begin; other failures show when the file is written.
    """
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if Path(path).is_dir() or path.endswith(("/", os.sep)):
        raise ConfigError(f"{flag}: {path} is a folder; name a file")
    if Path(path).exists() and not Path(path).is_file():
        raise ConfigError(f"{flag}: {path} is a device or a pipe; name a file")
    if not folder.is_dir():
        raise ConfigError(f"{flag}: {path}: cannot write the file: {folder} is not a folder")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{flag}: {path}: cannot write the file: {folder} is read-only")


class Parser(argparse.ArgumentParser):
    """A command's flags, where dashes and underscores mean the same.

    Its errors are ConfigErrors like all others, without two screens of usage.
    """

    def __init__(self, prog: str, description: str, **options: Any) -> None:
        epilog = "Dashes and underscores in flags mean the same."
        super().__init__(
            prog=prog, description=description, epilog=epilog, allow_abbrev=False, **options
        )

    def read(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Return the flags' values; argv None: the process's own arguments.

        Raises ConfigError for an unknown flag, with the nearest one, and for a flag without a value
        or with an empty one.
        """
        words = [_underscores(word) for word in (sys.argv[1:] if argv is None else argv)]
        known, unknown = self.parse_known_args(words)
        if unknown:
            raise ConfigError(self._explain(unknown[0]))
        required = {action.dest for action in self._actions if action.required}
        for name, value in vars(known).items():
            if isinstance(value, str) and not value.strip():
                hint = "" if name in required else "; leave the flag out for the default"
                raise ConfigError(f"--{name}: got {value!r}, wanted a value{hint}")
        return known

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of ending the process."""
        raise ConfigError(message.removeprefix("argument "))

    def _explain(self, word: str) -> str:
        if not word.startswith("-"):
            return f"unexpected {word!r}: every value follows its flag"
        flag = word.partition("=")[0]
        names = [name.lstrip("-") for name in self._option_string_actions]
        near = nearest_key(flag.lstrip("-"), [name for name in names if len(name) > 1])
        return f"no such flag {flag}; " + (f"did you mean --{near}?" if near else "see --help")


def _training_parser(prog: str, description: str) -> Parser:
    from . import fields

    parser = Parser(
        prog,
        description,
        usage=f"{prog} [--config FILE] [--KEY VALUE ...]",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with any of the keys below (default: config.yaml, if there is one)",
    )
    parser.add_argument(
        "--resume",
        metavar="DIR",
        help="go on with the run in this folder, which ends as if it had never stopped; with "
        "--epochs N it is trained for N epochs in all",
    )
    parser.add_argument(
        "--init_from",
        metavar="FILE",
        help="start a new run from the weights of this checkpoint, of the same network",
    )
    groups = {"": parser.add_argument_group("run")}
    for key, text, allowed, default in fields():
        section, _, leaf = key.rpartition(".")
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        shown = default if isinstance(default, str) else json.dumps(default)
        about = f"{text} ({allowed}; default: {shown})".replace("%", "%%")
        names = [f"--{leaf}", f"--{key}"] if key in SHORT else [f"--{key}"]
        if isinstance(default, bool):  # the flag alone switches on
            groups[section].add_argument(
                *names, dest=key, metavar="BOOL", nargs="?", const="true", help=about
            )
        else:
            groups[section].add_argument(*names, dest=key, metavar=_metavar(default), help=about)
    return parser


def _metavar(default: object) -> str:
    return {int: "N", float: "X"}.get(type(default), "VALUE")


def _underscores(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
