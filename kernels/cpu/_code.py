"""Machine code for this computer's processor: made once, kept on disk, loaded by LLVM alone.

To import Numba and to load what it cached takes half a second in every process. So the C functions
that it makes of our loops, and those that `_rows` and `_late` write, become object files that need
nothing but the C library, and llvmlite loads them in milliseconds.

A damaged file does no harm: each ends with a checksum of the rest, and one that does not match is
compiled again and replaced. If the disk is full or read-only, each process compiles for itself, and
nothing else is lost. A process that adds a file deletes those that were not loaded for `UNUSED`
seconds: they are of other versions, or of neurons that were tried once.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import llvmlite
from llvmlite import binding as llvm

from neurospike.backend.garbage import uncollected

SUM_BYTES = 4
UNUSED = 30 * 86400.0
SEEN = 86400.0  # a file whose time is older, in seconds, is marked as used when it is loaded
# Variables of Numba's that do not change what it compiles; all others are taken to change it.
INDIFFERENT = ("NUMBA_CACHE_DIR", "NUMBA_DEBUG_CACHE", "NUMBA_DISABLE_JIT", "NUMBA_NUM_THREADS")
OWN = Path(__file__).parent
PACKAGE = Path(sys.modules["neurospike"].__path__[0])
# What is compiled, and what it is compiled with, beside the files of this folder.
SOURCES = ("backend/binding.py", "neurons/derive.py", "neurons/program.py")

Write = Callable[[str], llvm.ModuleRef]

_lock = threading.RLock()
_loaded: dict[str, int] = {}


def address(
    key: Iterable[object], write: Write, loop: str = "", packages: Iterable[str] = ()
) -> int:
    """Return the address of a C function, which stays loaded as long as this process runs.

    Args:
        key: all that the function depends on beside this package, the processor and llvmlite.
        write: given the name that the function is to have, returns an optimised module that
            defines it and exports nothing else.
        loop: name of what is compiled, for a message on a terminal; if empty there is no message.
        packages: those that `write` uses, on whose versions the function depends too.
    """
    versions = (f"{package} {importlib.metadata.version(package)}" for package in packages)
    text = "\0".join(map(repr, (*key, *versions, _here())))
    name = f"neurospike_{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    with _lock:
        if name not in _loaded:
            _loaded[name] = _load(name, _kept(name) or _made(name, write, loop))
        return _loaded[name]


def count() -> int:
    """Return how many functions this process has loaded so far."""
    return len(_loaded)


@functools.cache
def _here() -> str:
    """Return what every function depends on: our sources, the processor, LLVM and its options."""
    seen = hashlib.sha256()
    for file in (*sorted(OWN.glob("*.py")), *(PACKAGE / name for name in SOURCES)):
        seen.update(file.read_bytes())
    numbas = {k: v for k, v in os.environ.items() if k.startswith("NUMBA_")}
    options = sorted(one for one in numbas.items() if one[0] not in INDIFFERENT)
    processor = (llvm.get_process_triple(), llvm.get_host_cpu_name(), _features())
    return repr((seen.hexdigest(), llvmlite.__version__, sys.version, processor, options))


@functools.cache
def _features() -> str:
    try:
        return llvm.get_host_cpu_features().flatten()
    except RuntimeError:  # on processors that LLVM cannot ask
        return ""


@functools.cache
def _machine() -> llvm.TargetMachine:
    with contextlib.suppress(RuntimeError):
        llvm.initialize()  # newer versions need no such call, and raise
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=_features(),
        opt=3,
        reloc="default",
        codemodel="jitdefault",
        jit=True,
    )


@functools.cache
def _engine() -> llvm.ExecutionEngine:
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())


def optimised(module: llvm.ModuleRef, level: int) -> llvm.ModuleRef:
    """Return a module, optimised for this processor and without unused functions."""
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    builder = llvm.create_pass_builder(_machine(), options)
    builder.getModulePassManager().run(module, builder)
    return module


def _made(name: str, write: Write, loop: str) -> bytes:
    """Compile a function; return its object file, after writing it to disk if possible."""
    folder = _folder()
    if loop and sys.stderr is not None and sys.stderr.isatty():
        again = "once: the code is kept on disk"
        if folder is None:
            again = "in each process: there is no folder to keep the code in"
        print(f"neurospike: compiling {loop} ({again})", file=sys.stderr)  # noqa: T201 (a person waits)
    with uncollected():  # a collection, through all of torch, takes longer than a short function
        content = _machine().emit_object(write(name))
    if folder is not None:
        with contextlib.suppress(OSError):
            _write(folder / name, content + _sum(content))
            _tidy(folder)
    return content


def _load(name: str, content: bytes) -> int:
    engine = _engine()
    engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(content))
    engine.finalize_object()
    return engine.get_function_address(name)


def _folders() -> list[Path]:
    """Return folders for compiled code: `NUMBA_CACHE_DIR`, or else ours and the user's cache."""
    if told := os.environ.get("NUMBA_CACHE_DIR"):
        return [Path(told) / "neurospike"]
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return [OWN / "__pycache__", (Path(home) if home else Path("~/.cache")) / "neurospike"]


def _kept(name: str) -> bytes | None:
    """Return an object file that an earlier process wrote; None if there is none undamaged."""
    for folder in _folders():
        with contextlib.suppress(OSError, RuntimeError):
            file = folder.expanduser() / name
            content = file.read_bytes()
            if content[-SUM_BYTES:] == _sum(content[:-SUM_BYTES]):
                _mark(file)
                return content[:-SUM_BYTES]
    return None


def _mark(file: Path) -> None:
    """Set a file's time to now if it is older than `SEEN` seconds, where the system allows it."""
    with contextlib.suppress(OSError):
        if time.time() - file.stat().st_mtime > SEEN:
            os.utime(file)


@functools.cache
def _tidy(folder: Path) -> None:
    """Delete the files of a folder that were not used for `UNUSED` seconds, once per process."""
    now = time.time()
    for file in folder.glob("neurospike_*"):
        with contextlib.suppress(OSError):  # another process may be doing the same
            if now - file.stat().st_mtime > UNUSED:
                file.unlink()


def _folder() -> Path | None:
    """Return a folder that code can be written to, made if need be; None if there is none."""
    for folder in _folders():
        with contextlib.suppress(OSError, RuntimeError):
            folder = folder.expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    return None


def _write(file: Path, content: bytes) -> None:
    """Write a file as a whole or not at all, even if other processes write the same one."""
    made = file.with_name(f"{file.name}.tmp.{os.getpid()}")
    try:
        made.write_bytes(content)
        made.replace(file)
    except BaseException:
        made.unlink(missing_ok=True)
        raise


def _sum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(SUM_BYTES, "little")
