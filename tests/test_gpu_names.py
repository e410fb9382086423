"""Names in files that only a GPU runs: each is there, and can be called as it is called."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ["tests/on_cuda.py", "benchmarks/device.py", "benchmarks/equivalence.py"]
FILES += ["benchmarks/gpu.py", "benchmarks/gpu_checks.py", "benchmarks/networks.py"]
FILES += ["benchmarks/gpu_layers.py", "benchmarks/gpu_networks.py", "benchmarks/gpu_sweep.py"]
FILES += ["benchmarks/gpu_recurrent.py", "benchmarks/gpu_session.py", "benchmarks/host.py"]
FILES += ["benchmarks/recurrent_gate.py", "tests/recurrent_cases.py"]


def names_of(tree, package):
    """What the imports of a file, wherever they stand, bind to its names."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = importlib.import_module(alias.name)
                first = alias.name.partition(".")[0]
                found[alias.asname or first] = (
                    module if alias.asname else importlib.import_module(first)
                )
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            for alias in node.names:
                module = importlib.import_module(name, package)
                if not hasattr(module, alias.name):  # a module of a package
                    importlib.import_module(f"{module.__name__}.{alias.name}")
                found[alias.asname or alias.name] = getattr(module, alias.name)
    return found


def value_of(node, names):
    """What `a.b.c` stands for, if `a` was imported; AttributeError where it is not there."""
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.Attribute):
        return getattr(value_of(node.value, names), node.attr)
    raise KeyError


@pytest.mark.parametrize("file", FILES)
def test_every_name_is_there_and_takes_its_arguments(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    names = names_of(tree, file.partition("/")[0] if file.startswith("benchmarks") else None)
    own = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    names = {name: value for name, value in names.items() if name not in own}
    seen = 0
    for node in ast.walk(tree):
        try:
            value_of(node, names)
            seen += 1
        except KeyError:
            continue
        except AttributeError as error:
            raise AssertionError(f"{file}:{node.lineno}: {error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_plain(node):
            try:
                signature = inspect.signature(value_of(node.func, names))
            except (KeyError, ValueError, TypeError):  # not imported, or written in C
                continue
            signature.bind(*node.args, **{word.arg: word.value for word in node.keywords})
    assert seen > 10


def _is_plain(call):
    """True where neither `*` nor `**` hides how many arguments there are."""
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    return not starred and all(word.arg for word in call.keywords)


@pytest.mark.parametrize("file", ["test_running", "test_torch"])  # see `test_triton.ON_CUDA`
def test_every_test_that_a_gpu_runs_says_where_its_tensors_are(file):
    tree = ast.parse((ROOT / f"tests/{file}.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    knowing = {"device_of"}
    for _ in functions:
        knowing |= {one.name for one in functions if knowing & _names_in(one)}
    tests = [one for one in functions if {"fused", "backend"} & {a.arg for a in one.args.args}]
    tests = [one for one in tests if one.name.startswith("test_")]
    assert len(tests) > 10
    assert [one.name for one in tests if one.name not in knowing] == []


def _names_in(function):
    return {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
