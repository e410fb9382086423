"""Every block of the README runs as printed, in its order, in a folder as `git clone` leaves it.

`data/` there holds a small data set in MNIST's files, where the README says that MNIST may lie: so
no command is changed, and none fetches anything.
"""

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import fresh
import pytest
from mnist import idx

from neurospike.data import load

TEXT = (fresh.ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)

# What is not run here, and where it is.
ELSEWHERE = {
    "pip install -e . && python -m neurospike.train": "run by .ci/run, which may fetch",
    "pip install -e '.[dev]' && python -m pytest": "run by .ci/run: this suite",
    "python -m pytest -m thorough": "run by .ci/run: this suite",
    "python -m pytest -m smoke": "run by .ci/run: part of this suite",
    'python -m pytest -m "" tests/test_lif.py tests/test_equivalence.py tests/test_search.py '
    "tests/test_mutants.py": "part of this suite",
}
# Commands that serve until Ctrl-C: what they say once they do, and the port they take.
SERVERS = {
    "python -m neurospike.live": ("open http://", 8080),
    "pip install -e '.[docs]' && mkdocs serve": ("Serving on http://", 8000),
}
# What a command needs beside the packages that `import neurospike` does.
NEEDS = {
    "--out digits.onnx": ("onnx", "onnxruntime", "onnxscript"),
    "neurospike.live": ("nicegui",),
    "'.[docs]'": ("mkdocs", "material", "mkdocstrings"),
}


def commands(block):
    """The commands of a shell's block, one to a line, without what is said about them."""
    lines = block.replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := line.partition("  #")[0].strip())]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The folder and the environment that the blocks share, as a reader's do."""
    home = tmp_path_factory.mktemp("home")
    folder = fresh.checkout(home / "neurospike", compiled=True)
    raw = folder / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digits = load("digits", "")
    for name, split, count in (("train", digits.train, 320), ("t10k", digits.test, 64)):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(split.images[:count]))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(split.labels[:count]))
    # No browser is opened, and NiceGUI behaves otherwise where it finds pytest's variable.
    env = fresh.environment(home / "venv") | {"BROWSER": "true"}
    env.pop("PYTEST_CURRENT_TEST", None)
    return folder, env


@contextlib.contextmanager
def free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            pytest.skip(f"another program has port {port}")
    yield


def serve(command, folder, env):
    """Run a command that serves, until it says that it does; then press Ctrl-C."""
    wanted, port = SERVERS[command]
    with free(port):
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    said = []
    for line in process.stdout:
        said.append(line)
        if wanted in line:
            # Not before it answers: until then Ctrl-C finds mkdocs with half a server.
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=120).close()
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    said.append(process.communicate()[0])
    assert any(wanted in line for line in said), "".join(said)
    assert "Traceback" not in said[-1], said[-1]


def titles():
    """A name for each block: its number and the first line of it."""
    for number, (language, block) in enumerate(BLOCKS, start=1):
        yield f"{number} {language}: {block.splitlines()[0][:50]}"


@pytest.mark.thorough
@pytest.mark.parametrize(("language", "block"), BLOCKS, ids=titles())
def test_block(language, block, clone, monkeypatch):
    folder, env = clone
    if language == "python":
        monkeypatch.chdir(folder)
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
        return
    assert language == "bash", f"nothing here runs {language}"
    for command in commands(block):
        if command in ELSEWHERE:
            continue
        missing = [
            name
            for part, names in NEEDS.items()
            if part in command
            for name in names
            if not importlib.util.find_spec(name)
        ]
        if missing:
            pytest.skip(f"{command}: needs {', '.join(missing)}")
        if command in SERVERS:
            serve(command, folder, env)
        else:
            fresh.run(["bash", "-c", command], folder, env)


def test_what_is_run_elsewhere_stands_in_the_readme_and_is_run_there():
    printed = {
        command for language, block in BLOCKS if language == "bash" for command in commands(block)
    }
    assert {*ELSEWHERE, *SERVERS} <= printed
    ci = (fresh.ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "'/^## Start/,/^## /" in ci  # it runs the commands of that section
    start = re.search(r"^## Start$(.*?)^## ", TEXT, re.DOTALL | re.MULTILINE)[1]
    for command, where in ELSEWHERE.items():
        assert (command in start) == (".ci/run" in where)
    for file in re.findall(r"tests/\w+\.py", TEXT):
        assert Path(fresh.ROOT, file).is_file(), file


def test_it_is_short_and_its_links_lead_somewhere():
    assert TEXT.count("\n") <= 150
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#([\w-]+))?\)", TEXT)
    assert len(links) > 20
    for target, place in links:
        path = fresh.ROOT / target
        assert path.exists(), target
        if place:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert place in slugs, f"{target}#{place}"
