"""`python -m benchmarks.compare`: tells a slower commit from the same one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.compare import Comparison

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
NOISE = [1.0, 1.1, 0.9, 1.05, 0.97, 1.02, 1.0, 0.95, 1.08, 0.99]


def test_a_difference_is_told_from_noise(capsys):
    here, turned = tuple(NOISE), tuple(reversed(NOISE))
    same = Comparison("a", turned, here)
    slower = Comparison("b", turned, tuple(1.4 * t for t in here))
    hardly = Comparison("c", here, tuple(1.03 * t for t in here))
    faster = Comparison("d", turned, tuple(0.5 * t for t in here))
    verdicts = [one.verdict(1.05) for one in (same, slower, hardly, faster)]
    assert verdicts == ["same", "slower", "slower, within the threshold", "faster"]
    assert slower.ratio == pytest.approx(1.4, rel=0.05)
    low, high = slower.interval()
    assert 1.2 < low <= slower.ratio <= high < 1.7
    assert compare.report([same, hardly, faster], 1.05) == 0
    assert compare.report([same, slower], 1.05) == 1
    shown = capsys.readouterr().out
    assert "beyond noise: c, d\nslower by more than 5%: nothing\n" in shown
    assert shown.endswith("beyond noise: b\nslower by more than 5%: b\n")


def test_what_a_process_has_by_luck_is_no_difference():
    """Pairs of processes that differ by 7% either way, each round of a pair alike."""
    pairs = [1.07, 0.95, 1.06, 0.94, 1.08, 1.07, 0.96, 1.05]
    base = (1.0,) * 80
    here = tuple(pair * (1 + 0.002 * k) for pair in pairs for k in range(10))
    assert Comparison("as one", base, here).verdict(1.0) == "slower"
    assert Comparison("as they are", base, here, each=10).verdict(1.0) == "same"
    parts = [Comparison("a", base[:10], here[k : k + 10], each=10) for k in range(0, len(here), 10)]
    assert compare.joined(parts) == Comparison("a", base, here, each=10)


def git(*words, folder):
    who = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs git and a checkout"
)
def test_the_same_commit_passes_and_a_kernel_that_sleeps_is_caught(tmp_path):
    pytest.importorskip("numba")
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in ("neurospike", "kernels", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / part, copy / part, ignore=ignored)
    git("init", "--quiet", folder=copy)
    (copy / ".gitignore").write_text("__pycache__/\n")
    git("add", ".", folder=copy)
    git("commit", "--quiet", "--message", "as it is", folder=copy)

    def run(*options):
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.compare", *options],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    few = ("--cases", "inference", "--rounds", "2", "--processes", "4", "--finest", "0.005")
    few += ("--threads", "1")
    same = run("HEAD", *few, "--backend", "reference", "--threshold", "3")
    assert same.returncode == 0, same.stderr
    assert "slower by more than 200%: nothing" in same.stdout
    kernel = copy / "kernels/cpu/_job.py"
    text = kernel.read_text(encoding="utf-8")
    begin = "        job, place = self.job[:], HEAD\n"
    assert text.count(begin) == 1
    slowed = text.replace(begin, begin + "        import time; time.sleep(0.03)\n")
    kernel.write_text(slowed, encoding="utf-8")
    slower = run("HEAD", *few)  # the checkout as it stands, with what is not committed
    assert slower.returncode == 1, slower.stderr
    assert "slower by more than 5%: inference" in slower.stdout
    assert git("worktree", "list", folder=copy).count("\n") == 1
    wrong = run("no-such-commit", *few)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: git rev-parse --verify no-such-commit^{commit}: ")
