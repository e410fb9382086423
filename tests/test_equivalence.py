"""Every surrogate under every rule: all pairs where nothing is compiled, a diagonal where it is.

A surrogate enters a kernel as one number, so a pair that is not compiled here differs from two that
are in that number alone. `test_lif.py` has each rule over shapes, number formats and layouts.
"""

import pytest
from equivalence import check

import neurospike as ns
from neurospike import dispatch

RULES = [
    {"reset": "subtract"},
    {"reset": "zero"},
    {"reset": "none"},
    {"reset": "subtract", "reset_delay": False},
    {"reset": "zero", "reset_delay": False},
    {"reset": "subtract", "reset_delay": False, "detach_reset": True},
    {"reset": "zero", "reset_delay": False, "detach_reset": True},
]


@pytest.mark.parametrize("number", range(len(RULES)))
def test_surrogates_under_rules(number, backend):
    surrogates = list(ns.surrogate.BUILT_IN)
    if dispatch.TABLE[backend].fused:
        surrogates = [surrogates[(number + 1) % len(surrogates)]]
    for surrogate in surrogates:
        check(backend, RULES[number], surrogate)
