"""`python -m neurospike --mode train|inference|...`: every command under one name."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from neurospike.config.cli import guarded
from neurospike.errors import ConfigError

MODULES = {
    "train": "neurospike.train",
    "inference": "neurospike.predict",
    "evaluate": "neurospike.evaluate",
    "export": "neurospike.export",
    "live": "neurospike.live.__main__",
}
WORDS = {**{mode: mode for mode in MODULES}, "predict": "inference", "test": "evaluate"}
USAGE = """usage: python -m neurospike --mode train|inference|evaluate|export|live [flags]

  --mode train      train a network          (the same as python -m neurospike.train)
  --mode inference  recognise pictures       (the same as python -m neurospike.predict)
  --mode evaluate   test a trained network   (the same as python -m neurospike.evaluate)
  --mode export     write it for elsewhere   (the same as python -m neurospike.export)
  --mode live       see its neurons answer   (the same as python -m neurospike.live)

The flags are those of the mode: python -m neurospike --mode train --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the mode's command with the flags that remain; its exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--mode", nargs="?")
    known, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    if known.mode not in MODULES and {"-h", "--help"} & set(rest):
        print(USAGE)
        return 0
    return guarded(lambda: _run(known.mode, rest))


def _run(mode: str | None, flags: list[str]) -> int:
    if mode not in MODULES:
        meant = WORDS.get(mode or (flags[0] if flags else ""))
        hint = f"; did you mean --mode {meant}?" if meant else "; see --help"
        raise ConfigError(f"--mode: got {mode or 'nothing'}, allowed: {', '.join(MODULES)}{hint}")
    prog = f"python -m neurospike --mode {mode}"
    return int(importlib.import_module(MODULES[mode]).main(flags, prog=prog))


if __name__ == "__main__":
    raise SystemExit(main())
