"""Every backward kernel of the Triton backend is one that Triton accepts, which needs no GPU.

Of every rule, every subset of the gradients that can come, every number format, with and without a
constant current, the kernel is taken to the code in which all types are known: there fails what
only a compiler sees. The rest of `triton_variants.BACKWARD` is spread over these so that every pair
of values appears. `test_triton_forward.py` has the forward kernels, and goes on to machine code.
"""

import pytest

pytest.importorskip("triton")

import triton_variants as variants

from benchmarks.triton_code import parsing

pytestmark = pytest.mark.thorough

NAMED = ("rule", "dtype", "constant", "spikes", "trace", "final")
COMES = [  # some gradient comes, else no kernel is called
    variant
    for variant in variants.product({name: variants.BACKWARD[name] for name in NAMED})
    if variant["spikes"] or variant["trace"] or variant["final"]
]
EVERY = variants.filled(COMES, variants.BACKWARD)


@pytest.mark.parametrize("rule", variants.FORWARD["rule"])
def test_every_kernel_has_types(rule):
    mine = [variant for variant in EVERY if variant["rule"] == rule]
    assert len(mine) == 42  # 7 subsets of the gradients, 3 formats, constant or not
    with parsing(90) as made:
        for variant in mine:
            variants.launch("backward", variant)
    assert made == ["_backward"] * len(mine)


def test_every_pair_of_values_is_among_them():
    found = set().union(*map(variants.pairs, EVERY))
    assert found >= variants.every_pair(variants.BACKWARD)


@pytest.mark.parametrize("rule", variants.FORWARD["rule"])
def test_a_sequence_of_no_steps_needs_no_kernel(rule):
    with parsing(90) as made:
        for variant in EVERY:
            if variant["rule"] == rule and variant["neurons"] == 37:
                variants.launch("backward", {**variant, "steps": 0})
    assert made == []
