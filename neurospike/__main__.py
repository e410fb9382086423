"""`python -m neurospike --mode train|inference|...`: every command under one name."""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence

from neurospike.cli import guarded
from neurospike.errors import ConfigError, NeuroSpikeError

MODULES = {
    "train": "neurospike.train",
    "inference": "neurospike.predict",
    "evaluate": "neurospike.evaluate",
    "export": "neurospike.export",
    "live": "neurospike.live.__main__",
}
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
    if known.mode is None and {"-h", "--help"} & set(rest):
        print(USAGE)
        return 0
    return guarded(lambda: _run(known.mode, rest))


def _run(mode: str | None, flags: list[str]) -> int:
    if mode not in MODULES:
        raise ConfigError(f"--mode: got {mode or 'nothing'}, allowed: {', '.join(MODULES)}")
    module = MODULES[mode]
    if importlib.util.find_spec(module) is None:
        raise NeuroSpikeError(f"--mode {mode} comes with {module}, which this version lacks yet")
    prog = f"python -m neurospike --mode {mode}"
    return int(importlib.import_module(module).main(flags, prog=prog))


if __name__ == "__main__":
    raise SystemExit(main())
