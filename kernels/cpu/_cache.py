"""Compiled code kept on disk, as Numba keeps it, that no damage of a file can do harm with.

Numba trusts its files: an index or machine code that was cut off, or in which a bit has flipped,
ends every later process, or computes something else. Here each file ends with a checksum of the
rest, and what does not fit it is compiled anew and written over. A disk that is full or read-only
costs the compilation of each process, and nothing else.
"""

import contextlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.ccallback import CFunc
from numba.core.compiler import Compiler

SUM_BYTES = 4


class _CheckedFiles(IndexDataCacheFile):
    """An index and its files of code, which pickle reads up to where the checksum begins."""

    @contextlib.contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[BinaryIO]:
        content = io.BytesIO()
        yield content
        with super()._open_for_write(filepath) as file:
            file.write(content.getvalue() + _sum(content.getvalue()))

    def _load_index(self) -> dict[Any, str]:
        return super()._load_index() if _is_whole(self._index_path) else {}

    def _load_data(self, name: str) -> Any:
        if not _is_whole(self._data_path(name)):
            raise OSError("damaged")  # which `load` takes for a file that is not there
        return super()._load_data(name)


class _CheckedCache(FunctionCache):
    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._cache_file = _CheckedFiles(
            self.cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp()
        )

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(signature, target_context)
        except Exception:  # noqa: BLE001 (whole, but of another LLVM, say: numba has no one error)
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        with contextlib.suppress(OSError):
            super().save_overload(signature, data)


def c_function(
    function: Any,
    signature: Any,
    kept: type[Compiler] = Compiler,
    unkept: type[Compiler] = Compiler,
    **options: Any,
) -> CFunc:
    """Compile `function` as `numba.cfunc` does, or take what an earlier process kept of it.

    kept, unkept: Numba's pipelines for code that is kept, and where there is no folder to keep it.
    """
    arguments = (signature.args, signature.return_type)
    cache = None
    with contextlib.suppress(RuntimeError, OSError):
        cache = _CheckedCache(function)
    pipeline = unkept if cache is None else kept
    compiled = CFunc(function, arguments, locals={}, options=options, pipeline_class=pipeline)
    if cache is not None:
        compiled._cache = cache  # type: ignore[attr-defined]
    compiled.compile()
    return compiled


def _sum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(SUM_BYTES, "little")


def _is_whole(path: str) -> bool:
    try:
        content = Path(path).read_bytes()
    except OSError:
        return False
    return content[-SUM_BYTES:] == _sum(content[:-SUM_BYTES])
