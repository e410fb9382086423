"""`python -m neurospike train|predict|evaluate|export|live`: every command under one name.

An installation calls the same `neurospike`. `--mode train` and its like mean the same as the word.
"""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

from neurospike.config.cli import guarded
from neurospike.errors import ConfigError

MODULES = {
    "train": "neurospike.train",
    "predict": "neurospike.predict",
    "evaluate": "neurospike.evaluate",
    "export": "neurospike.export",
    "live": "neurospike.live.__main__",
}
OTHER_WORDS = {"inference": "predict", "test": "evaluate"}
USAGE = """usage: python -m neurospike COMMAND [flags]

  train     train a network          (the same as python -m neurospike.train)
  predict   recognise pictures       (the same as python -m neurospike.predict)
  evaluate  test a trained network   (the same as python -m neurospike.evaluate)
  export    write it for elsewhere   (the same as python -m neurospike.export)
  live      see its neurons answer   (the same as python -m neurospike.live)

The flags are those of the command: python -m neurospike train --help
--mode COMMAND is another way to name it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that is named with the flags that remain; its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        name, said, flags = words[0], words[0], words[1:]
    else:
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--mode", nargs="?")
        known, flags = parser.parse_known_args(words)
        name, said = known.mode, f"--mode {known.mode}"
    name = OTHER_WORDS.get(name, name)
    return guarded(lambda: _run(name, said, flags))


def _run(name: str | None, said: str, flags: list[str]) -> int:
    if name not in MODULES and {"-h", "--help"} & set(flags):
        print(USAGE)
        return 0
    if name is None:
        raise ConfigError(f"no command was named; there are {', '.join(MODULES)}")
    if name not in MODULES:
        near = difflib.get_close_matches(name, [*MODULES, *OTHER_WORDS], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{said}: no such command, there are {', '.join(MODULES)}{hint}")
    command = importlib.import_module(MODULES[name])
    return int(command.main(flags, prog=f"python -m neurospike {said}"))


if __name__ == "__main__":
    raise SystemExit(main())
