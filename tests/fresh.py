"""A checkout as `git clone` leaves one, and a virtual environment in which nothing is installed.

Torch and the rest come from the environment of these tests, so that nothing is fetched; `.ci/run`
installs in one that holds nothing.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
# Beside the tests, which a test need not copy, all that is of use to somebody who cloned it.
PARTS = (
    *("LICENSE", "README.md", "config.yaml", "pyproject.toml", "setup.py", "mkdocs.yml"),
    *("benchmarks", "configs", "docs", "examples", "kernels", "neurospike"),
)


def checkout(folder: Path, *, compiled: bool = False) -> Path:
    """Copy this checkout to a folder; with the code that was compiled, if wanted. Return it."""
    folder.mkdir(parents=True)
    left_out = shutil.ignore_patterns("*.tmp.*", *([] if compiled else ["__pycache__"]))
    for part in (ROOT / name for name in PARTS):
        if part.is_dir():
            shutil.copytree(part, folder / part.name, ignore=left_out)
        else:
            shutil.copy2(part, folder)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Make a virtual environment; return the variables under which `python` and `pip` are its."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    # A path of its own line, whose own .pth files are not read: an editable install is not seen.
    (folder / SITE / "tests.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    # Commands of the packages that lie there.
    for command in ("pip", "mkdocs"):
        (folder / "bin" / command).write_text(f'#!/bin/sh\nexec "{python}" -m {command} "$@"\n')
        (folder / "bin" / command).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{kept['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way of saying yes
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def run(command: list[str], folder: Path, env: dict[str, str]) -> str:
    """Run a command in a folder; what it printed. It has to succeed."""
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
