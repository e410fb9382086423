"""`import neurospike` wherever a user stands: beside, in and far from a checkout, from a wheel too.

Installed for real, into virtual environments of their own.
"""

import importlib.metadata
import json
import zipfile
from pathlib import Path

import fresh
import pytest

import neurospike

pytestmark = pytest.mark.thorough

# No `importorskip`: where pip is imported, setuptools refuses to be, which torch.compile needs.
if not list(importlib.metadata.distributions(name="pip")):
    pytest.skip("needs pip", allow_module_level=True)

WHERE = "import importlib.util as u; s = u.find_spec('neurospike'); print(s and s.origin)"
USE = """
import inspect, torch
import neurospike as ns
from neurospike.kernels.cpu import scan
from neurospike.kernels.cuda import _scan_loop as kernel, scan as cuda_scan
with torch.no_grad():
    spikes, mem = ns.LIF(0.9, backend="numba")(torch.ones(4, 1, 3))
print(ns.__file__)
print(scan.__file__)
assert spikes.sum() > 0
assert cuda_scan._forward is kernel._forward
assert "tl.load" in inspect.getsource(kernel)
"""


class Place:
    """`~/code/neurospike`, and what lies beside it and elsewhere."""

    def __init__(self, home: Path) -> None:
        self.code, self.elsewhere = home / "code", home / "elsewhere"
        self.elsewhere.mkdir(parents=True)
        self.checkout = fresh.checkout(self.code / "neurospike")
        self.script = self.code / "script.py"
        self.script.write_text(WHERE)
        self.env = fresh.environment(home / "venv")
        self.site = home / "venv" / fresh.SITE

    def pip(self, *arguments: str) -> str:
        return fresh.run(["pip", *arguments], self.checkout, self.env)

    def python(self, folder: Path, *arguments: str) -> str:
        return fresh.run(["python", *arguments], folder, self.env)

    def found(self) -> dict[str, str]:
        """The file that `import neurospike` would run, by who asks."""
        return {
            "in the checkout": self.python(self.checkout, "-c", WHERE).strip(),
            "in the folder that holds it": self.python(self.code, "-c", WHERE).strip(),
            "elsewhere": self.python(self.elsewhere, "-c", WHERE).strip(),
            "a script beside it": self.python(self.elsewhere, str(self.script)).strip(),
        }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("home"))


def kept(folder: Path) -> bool:
    """Whether compiled code lies on disk beside the kernels in a folder."""
    return any((folder / "__pycache__").glob("neurospike_*"))


def recognises(place: Place) -> None:
    """Train and read a picture with what is installed, in a folder with nothing else in it."""
    few = ["--dataset=digits", "--hidden_size=64", "--num_steps=8", "--learning_rate=5e-3"]
    trained = place.python(place.elsewhere, "-m", "neurospike.train", *few, "--epochs=6")
    assert trained.splitlines()[-1].startswith("test accuracy: ")
    picture = str(place.checkout / "examples" / "digit.png")
    for command in (["python", "-m", "neurospike.predict"], ["neurospike", "predict"]):
        answer = fresh.run([*command, picture, "--json"], place.elsewhere, place.env)
        assert json.loads(answer)["digit"] == 5
    with pytest.raises(AssertionError, match="trian: no such command"):
        fresh.run(["neurospike", "trian"], place.elsewhere, place.env)


def test_the_checkout_itself_needs_no_installation(place):
    own = place.checkout / "neurospike" / "__init__.py"
    kernel = place.checkout / "kernels" / "cpu" / "scan.py"
    printed = place.python(place.checkout, "-c", USE).split()
    assert printed == [str(own), str(kernel)]
    assert kept(kernel.parent)
    assert place.found()["elsewhere"] == "None"


def test_an_editable_install_is_found_from_everywhere_and_leaves_nothing(place):
    place.pip("install", "--no-deps", "-e", ".")
    try:
        own = place.checkout / "neurospike" / "__init__.py"
        assert set(place.found().values()) == {str(own)}
        assert place.python(place.code, "-c", USE).split()[0] == str(own)
        listed = place.pip("show", "-f", "neurospike").split("Files:")[1].split()
        assert sorted(name for name in listed if ".dist-info/" not in name) == [
            "../../../bin/neurospike",
            f"__editable__.neurospike-{neurospike.__version__}.pth",
        ]
        # Hugging Face's package of that name, if it is installed.
        (place.site / "kernels").mkdir()
        (place.site / "kernels" / "__init__.py").touch()
        other = place.python(place.elsewhere, "-c", "import kernels; print(kernels.__file__)")
        assert other.strip() == str(place.site / "kernels" / "__init__.py")
        (place.site / "kernels" / "__init__.py").unlink()
        (place.site / "kernels").rmdir()
    finally:
        place.pip("uninstall", "-y", "neurospike")
    assert not list(place.site.glob("*neurospike*"))
    assert place.found()["elsewhere"] == "None"


def test_a_wheel_of_a_source_distribution_holds_every_file_and_is_found(place):
    build = "import setuptools.build_meta as b; print(b.build_sdist('dist'))"
    sources = place.python(place.checkout, "-c", build).split()[-1]
    place.pip("wheel", "--no-deps", "-w", "dist", f"dist/{sources}")
    (wheel,) = (place.checkout / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        files = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert files == {
        str(Path(to) / path.relative_to(place.checkout / part))
        for part, to in (("neurospike", "neurospike"), ("kernels", "neurospike/kernels"))
        for path in (place.checkout / part).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    place.pip("install", "--no-deps", str(wheel))
    try:
        installed = place.site / "neurospike"
        found = place.found()
        assert found.pop("in the checkout") == str(place.checkout / "neurospike/__init__.py")
        assert set(found.values()) == {str(installed / "__init__.py")}
        printed = place.python(place.code, "-c", USE).split()
        assert printed[1] == str(installed / "kernels" / "cpu" / "scan.py")
        assert kept(installed / "kernels" / "cpu")
        recognises(place)
    finally:
        place.pip("uninstall", "-y", "neurospike")
    assert not list(installed.rglob("*.py"))
