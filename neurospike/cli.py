"""What the commands share: flags made from the configuration, and errors told in a line."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from neurospike.config import fields, nearest_key
from neurospike.errors import ConfigError, NeuroSpikeError

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
    """Read the flags: the config file, if one was named, and the values by dotted key, as text.

    Dashes in a flag are underscores: `--data-path` is `--data_path`. `--help` prints and exits.
    Raises ConfigError for a flag there is not, with the nearest one, or one without its value.
    """
    parser = _parser(prog, description)
    known, unknown = parser.parse_known_args(
        [_underscores(word) for word in (sys.argv[1:] if argv is None else argv)]
    )
    if unknown:
        raise ConfigError(_explain(unknown[0]))
    values = vars(known)
    config = values.pop("config", None)
    return (None if config is None else Path(config)), values


def guarded(job: Callable[[], int]) -> int:
    """Run a command: its exit code, 2 after an error of the user's, 130 after Ctrl-C.

    Such errors are one or two lines on stderr. Any other exception is a bug of ours and keeps
    its traceback.
    """
    try:
        return job()
    except (NeuroSpikeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"interrupted{f'; {interrupt}' if interrupt.args else ''}", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """Tells of errors as all our errors are told, without two screens of usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [--config FILE] [--KEY VALUE ...]",
        description=description,
        epilog="Dashes and underscores in flags mean the same.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with any of the keys below (default: config.yaml, if there is one)",
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


def _explain(word: str) -> str:
    if not word.startswith("-"):
        return f"unexpected {word!r}: every value follows its flag, as in --epochs 3"
    flag = word.partition("=")[0]
    near = nearest_key(flag.lstrip("-"), ["config", *(key for key, *_ in fields())])
    if near in SHORT:
        near = near.rpartition(".")[2]
    return f"no such flag {flag}; " + (f"did you mean --{near}?" if near else "see --help")
