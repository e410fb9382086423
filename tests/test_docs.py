"""The documentation: its code runs, what it names exists, nothing public is left out of it."""

import builtins
import contextlib
import dis
import importlib.util
import inspect
import io
import linecache
import pydoc
import re
import shutil
import sys
from pathlib import Path
from types import CodeType

import pytest
import torch
import yaml

import neurospike as ns
from neurospike import config, formulas, models, train
from neurospike.backend import dispatch
from neurospike.config import fields

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MANY = (
    "index.md",
    "lif.md",
    "start.md",
    "networks.md",
    "streaming.md",
    "codings.md",
    "delays.md",
    "recurrence.md",
    "events.md",
    "nir.md",
    "visualization.md",
    "training.md",
    "own_training.md",
    "sequences.md",
    "own_data.md",
    "prediction.md",
    "extend/surrogate.md",
    "extend/neuron.md",
    "extend/backend.md",
    "extend/model.md",
    pytest.param("export.md", marks=pytest.mark.thorough),  # each export takes seconds
    "coming_from_snntorch.md",
    "coming_from_spikingjelly.md",
    "coming_from_norse.md",
)
# Pages that import another library.
NEEDED = {"coming_from_spikingjelly.md": "spikingjelly", "coming_from_norse.md": "norse"}


def text_of(name):
    return (DOCS / name).read_text(encoding="utf-8")


def module(name):
    """Import a file of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def blocks(text):
    """The Python of a page with the parts of scripts that it includes.

    Without whole scripts: these have tests of their own.
    """
    found = re.findall(r"^```python[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    shown = [re.sub(r'^--8<-- "([^":]+):(\w+)"$', part_of, one, flags=re.M) for one in found]
    return [block for block in shown if "--8<--" not in block]


def part_of(found):
    """What stands in a script between the marks of a section."""
    file, section = found.groups()
    text = (ROOT / file).read_text(encoding="utf-8")
    marks = (rf"^# --8<-- \[{mark}:{section}\]$" for mark in ("start", "end"))
    return re.search("(.*?)".join(marks), text, re.DOTALL | re.MULTILINE)[1]


def unknown_names(code, names):
    """Global names that functions read and nothing before or in their block has made."""
    read = {one.argval for one in dis.get_instructions(code) if one.opname == "LOAD_GLOBAL"}
    # What a neuron's function may use by its name alone.
    known = {*names, *vars(builtins), *vars(formulas)}
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return (read - known).union(*(unknown_names(one, names) for one in inner))


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder with what a reader has who trained the recogniser, and a picture of a digit."""
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset=digits", "--epochs=1", "--hidden_size=16", "--run_dir=runs/mine"]
    assert train.main(flags) == 0
    shutil.copy(ROOT / "examples" / "digit.png", tmp_path)
    return tmp_path


# Pages that take a trained network for granted.
AFTER_TRAINING = ("prediction.md",)


@pytest.mark.parametrize("page", MANY)
def test_python_of_the_pages_runs(page, tmp_path, monkeypatch, request):
    if page in NEEDED:
        pytest.importorskip(NEEDED[page])
    if page in AFTER_TRAINING:
        request.getfixturevalue("trained")
    monkeypatch.chdir(tmp_path)
    # Rows that a page adds, to tables that no other test sees.
    for owner, table in ((dispatch, "TABLE"), (models, "MODELS"), (config, "KINDS")):
        rows = getattr(owner, table)
        before = {**rows}
        request.addfinalizer(lambda rows=rows, before=before: (rows.clear(), rows.update(before)))
    names = {"__name__": "docs"}
    found = blocks(text_of(page))
    assert found
    for number, block in enumerate(found, start=1):
        code = compile(block, f"docs/{page}, Python block {number}", "exec")
        # A function's source is read by what records neurons.
        linecache.cache[code.co_filename] = (len(block), None, block.splitlines(True), "")
        exec(code, names)
        assert not unknown_names(code, names), code.co_filename


def test_every_page_with_python_is_run():
    run = {getattr(page, "values", (page,))[0] for page in MANY}
    assert run == {str(p.relative_to(DOCS)) for p in PAGES if blocks(p.read_text("utf-8"))}


COMMANDS = {
    **{name: f"neurospike.{name}" for name in ("train", "predict", "evaluate", "export")},
    "live": "neurospike.live.__main__",
}
TEXTS = [ROOT / "README.md", *PAGES]


def flags_of(command):
    """The flags that the `--help` of a command prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        importlib.import_module(COMMANDS[command]).main(["--help"])
    return set(re.findall(FLAG, printed.getvalue()))


FLAG = r"(?<![\w-])--[a-zA-Z][\w.-]*"


def test_commands_and_flags_that_pages_name_exist():
    known = {name: flags_of(name) for name in COMMANDS}
    every = set().union(*known.values())
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        blocks = re.findall(r"^```(?:bash|text)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        shell = "".join(blocks).replace("\\\n", " ").splitlines()
        for line in (one.partition("  #")[0] for one in shell + re.findall(r"`([^`\n]+)`", text)):
            command = re.search(r"python -m neurospike[. ](\w+)", line)
            flags = set(re.findall(FLAG, line))
            if command:
                assert command[1] in COMMANDS, f"{path.name}: {line}"
                assert flags <= known[command[1]], f"{path.name}: {line}"
            elif line.startswith("--"):
                assert flags <= every, f"{path.name}: {line}"


def test_names_of_the_library_that_pages_and_docstrings_name_exist():
    for path in (*TEXTS, *(ROOT / "neurospike").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:ns|neurospike)(?:\.\w+)+)(?!\.?[\w/])", text):
            if name.endswith(".py"):
                continue
            found = pydoc.locate(re.sub(r"^ns\b", "neurospike", name))
            assert found is not None, f"{path.name}: {name}"


def test_keys_of_the_configuration_that_pages_name_exist():
    keys = {key for key, *_ in fields()}
    sections = "|".join({key.partition(".")[0] for key in keys if "." in key})
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        named = set(re.findall(rf"`((?:{sections})\.[a-z_]+)(?:: [^`\n]*)?`", text))
        assert named <= keys, f"{path.name}: {named - keys}"


def test_every_page_is_in_the_navigation_and_none_is_missing():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_load(text)["nav"]
    listed = [page for section in nav for part in section.values() for page in flat(part)]
    assert sorted(listed) == [str(path.relative_to(DOCS)) for path in PAGES]


def flat(part):
    """The pages of a part of the navigation."""
    return [part] if isinstance(part, str) else [page for one in part for page in one.values()]


def test_every_public_name_has_an_entry():
    entries = {
        name for path in PAGES for name in re.findall(r"^::: (\S+)", path.read_text(), re.MULTILINE)
    }
    for name in ns.__all__:
        # A module, and a function that has the name of its file, are found where they are.
        one = getattr(ns, name)
        place = one.__name__ if inspect.ismodule(one) else f"{one.__module__}.{name}"
        parts = inspect.ismodule(one) and any(entry.startswith(f"{place}.") for entry in entries)
        assert parts or entries & {f"neurospike.{name}", place}, name
    for entry in entries:
        parent, _, leaf = entry.rpartition(".")
        try:
            owner = importlib.import_module(parent)
        except ModuleNotFoundError:
            pytest.fail(f"{entry}: there is no {parent}")
        assert hasattr(owner, leaf) or importlib.util.find_spec(entry), entry


def test_pictures_scripts_and_sections_that_pages_name_exist():
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for image in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
            assert (path.parent / image).is_file(), f"{path.name}: {image}"
        for snippet in re.findall(r'--8<-- "([^"]+)"', text):
            file, _, section = snippet.partition(":")
            content = (ROOT / file).read_text(encoding="utf-8")
            if section:
                for mark in ("start", "end"):
                    assert content.count(f"# --8<-- [{mark}:{section}]") == 1, snippet
        for file in re.findall(r"`((?:neurospike|kernels|tests|examples|configs)/[\w/.]+)`", text):
            assert (ROOT / file).exists(), f"{path.name}: {file}"


def test_no_picture_is_kept_that_nothing_shows():
    pages = [*PAGES, ROOT / "README.md", ROOT / "benchmarks" / "README.md"]
    shown = {
        Path(image).name
        for path in pages
        if path.exists()
        for image in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
    }
    assert {path.name for path in (DOCS / "images").iterdir()} <= shown


def test_the_benchmarks_own_page_is_shown_with_links_that_lead_somewhere(tmp_path, monkeypatch):
    hooks = module("hooks")
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    assert list(hooks.measurements()) == []
    (tmp_path / "benchmarks" / "README.md").write_text(
        "# Benchmarks\n\n## A\n[gate](gate.py) ![p](../docs/images/p.png) [x](https://x.org)\n"
    )
    assert list(hooks.measurements()) == [
        "",
        "## A",
        "gate (`benchmarks/gate.py`) ![p](images/p.png) [x](https://x.org)",
    ]


def test_generated_parts_hold_every_key_and_the_stored_results():
    hooks = module("hooks")
    text = hooks.on_page_markdown("# A\n\n<!-- generated: configuration -->\n\n## B")
    for key, *_ in fields():
        assert text.count(f"| `{key}` |") == 1
    assert text.startswith("# A\n")
    assert text.endswith("## B")
    named = {
        name
        for path in PAGES
        for name in re.findall(r"<!-- generated: (\w+) -->", path.read_text())
    }
    assert named == set(hooks.GENERATED)
    for name in named - {"configuration", "measurements"}:
        rows = list(hooks.GENERATED[name]())
        assert len(rows) >= 3
        assert len({row.count("|") for row in rows}) == 1


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("delay", [True, False])
def test_traces_of_the_contracts_picture_are_what_the_page_says(reset, delay, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    pictures = module("pictures")
    spikes, trace = pictures.reset_traces(reset, delay)
    mem, wanted, fired = 0.0, [], []
    for t in range(30):
        x = 0.45 if 2 <= t < 20 else 0.0
        due = float(mem > 1.0) if delay else 0.0
        kept = (1 - due) * mem if reset == "zero" else mem
        v = 0.85 * kept + x - (due if reset == "subtract" else 0.0)
        spike = float(v > 1.0)
        fired.append(spike)
        mem = v
        if not delay:
            mem = {"subtract": v - spike, "zero": v * (1 - spike), "none": v}[reset]
        wanted.append(mem)
    assert spikes.flatten().tolist() == fired
    assert torch.allclose(trace.flatten(), torch.tensor(wanted), atol=1e-5)
    if (reset, delay) == ("subtract", True):
        drawn = pictures.resets()
        assert drawn.axes[0].lines[0].get_ydata().tolist() == trace.flatten().tolist()
        assert drawn.axes[0].get_title() == "subtract, delayed"


def test_an_unknown_picture_is_refused(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(SystemExit, match="got portrait; wanted some of resets, one_spike"):
        module("pictures").main(["portrait"])


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")),
    reason="needs pip install -e '.[docs]'",
)
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    sys.modules.pop("docs_hooks", None)
    site = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    build(site)
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for path in pages:
        html = path.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', html)
        assert not fetched, path
        assert "--8&lt;--" not in html, path
        # A colon in the first line of "Returns" makes a type of what stands before it.
        assert "<code>`" not in html, path
    html = (tmp_path / "benchmarks" / "index.html").read_text(encoding="utf-8")
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(\.\./docs/(\w+)\.md(#[\w-]+)\)", readme)
    assert links
    assert all(f'href="../{page}/{place}"' in html for page, place in links)
