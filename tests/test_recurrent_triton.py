"""Recurrent layers on the Triton backend without a GPU: machine code, and results interpreted."""

import itertools
import os
import re
import tempfile
from pathlib import Path

import pytest
import torch

import neurospike as ns

pytest.importorskip("triton")

from test_triton import passed_interpreted
from triton_variants import covering

from benchmarks.gpu_recurrent import Kernel
from benchmarks.triton_code import compiling, parsing, usage_of
from neurospike.backend import dispatch
from neurospike.kernels.cuda import recurrent as kernels
from neurospike.kernels.cuda import scan as scan_triton

Geometry = kernels.Geometry


@pytest.mark.thorough
def test_in_the_interpreter_it_is_the_neurons_step_in_torch():
    assert passed_interpreted(["recurrent_interpreted"]) >= 30
    assert "TRITON_INTERPRET" not in os.environ
