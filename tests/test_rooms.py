"""Data go downhill: no room imports one that stands above it, no module itself in a circle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From below: each may import those before it. Files at the top are rooms of their own.
ORDER = (
    "errors",
    "formulas",
    "neurons",
    "backend",
    "ops",
    "kernels",
    "layers",
    "coding",
    "config",
)
ORDER += ("pictures", "data", "models", "visualization", "training", "live")


def imports(file: Path) -> set[str]:
    """What a file imports of the package, also inside functions; not for types alone."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    here = ("neurospike", *parts) if parts[0] == "kernels" else parts
    found, tree = set(), ast.parse(file.read_text(encoding="utf-8"))
    for_types = [
        one
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for one in ast.walk(node)
    ]
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else ()
            full = ".".join((*base, *([node.module] if node.module else [])))
            found |= {full, *(f"{full}.{one.name}" for one in node.names)}
        elif isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
    return {one for one in found if one.startswith("neurospike.")}


def modules() -> dict[str, set[str]]:
    """Each module of the package, with those of it that it imports."""
    files = [*(ROOT / "neurospike").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    names = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        names[".".join(("neurospike", *parts) if parts[0] == "kernels" else parts)] = file
    return {name: {one for one in imports(file) if one in names} for name, file in names.items()}


MODULES = modules()


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("name", ORDER)
def test_a_room_imports_only_those_below_it(name):
    inside = [module for module in MODULES if room(module) == name]
    assert inside
    allowed = ORDER[: ORDER.index(name) + 1]
    above = {
        f"{module} -> {one}"
        for module in inside
        for one in MODULES[module]
        if room(one) in ORDER and room(one) not in allowed
    }
    assert not above


def test_no_module_imports_itself_in_a_circle():
    circles, done = [], set()

    def walk(module, way):
        if module in way:
            circles.append(" -> ".join([*way[way.index(module) :], module]))
        elif module not in done:
            for one in MODULES[module]:
                if one != module and not module.startswith(f"{one}."):
                    walk(one, [*way, module])
            done.add(module)

    for module in MODULES:
        walk(module, [])
    assert not circles
