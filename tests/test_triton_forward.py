"""Every forward kernel of the Triton backend is one that Triton accepts, and both as machine code.

See `test_triton_backward.py`. What only a later part of the compiler could refuse, such as too many
stages for a processor's memory, is looked for in fewer variants, among which every pair of values
appears: they go the whole way, to the machine code of a Hopper GPU.
"""

import pytest

pytest.importorskip("triton")

import torch
import triton_variants as variants

from benchmarks.triton_code import compiling, parsing

pytestmark = pytest.mark.thorough

NAMED = ("rule", "dtype", "spikes", "trace", "saved")
ASKED = list(variants.product({name: variants.FORWARD[name] for name in NAMED}))
EVERY = variants.filled(ASKED, variants.FORWARD)


@pytest.mark.parametrize("rule", variants.FORWARD["rule"])
def test_every_kernel_has_types(rule):
    mine = [variant for variant in EVERY if variant["rule"] == rule]
    assert len(mine) == 24  # 8 subsets of the outputs, 3 formats
    with parsing(90) as made:
        for variant in mine:
            variants.launch("forward", variant)
    assert made == ["_forward"] * len(mine)


def test_every_pair_of_values_is_among_them():
    found = set().union(*map(variants.pairs, EVERY))
    assert found >= variants.every_pair(variants.FORWARD)


@pytest.mark.parametrize("rule", variants.FORWARD["rule"])
def test_a_sequence_of_no_steps_needs_no_kernel(rule):
    with parsing(90) as made:
        for variant in EVERY:
            if variant["rule"] == rule:
                variants.launch("forward", {**variant, "steps": 0})
    assert made == []


WHOLE = {
    "dtype": (*variants.DTYPES, torch.float16),
    "neurons": (37, variants.scan_triton.SMALL),
    "constant": variants.BOTH,
}
GRADIENTS = ("spikes", "spikes held", "trace", "trace held", "final")
MACHINE_CODE = {
    "forward": WHOLE | dict.fromkeys(("spikes", "trace", "saved", "mem"), variants.BOTH),
    "backward": WHOLE
    | dict.fromkeys(GRADIENTS, variants.BOTH)
    | {"learned": variants.BACKWARD["learned"]},
}


@pytest.mark.parametrize("kind", MACHINE_CODE)
def test_every_pair_becomes_machine_code(kind):
    chosen = variants.covering(MACHINE_CODE[kind])
    factors = variants.FORWARD if kind == "forward" else variants.BACKWARD
    with compiling(90) as made:
        for variant in variants.filled(chosen, factors):
            variants.launch(kind, variant)
    assert all(kernel.asm["cubin"].startswith(b"\x7fELF") for kernel in made)
    assert len(made) == len(chosen)
