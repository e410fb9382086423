"""Every surrogate under every rule, on every backend that runs here.

`test_lif.py` has each rule over shapes, number formats and layouts.
"""

import pytest
from equivalence import check

import neurospike as ns

RULES = [
    {"reset": "subtract"},
    {"reset": "zero"},
    {"reset": "none"},
    {"reset": "subtract", "reset_delay": False},
    {"reset": "zero", "reset_delay": False},
    {"reset": "subtract", "reset_delay": False, "detach_reset": True},
    {"reset": "zero", "reset_delay": False, "detach_reset": True},
]


@pytest.mark.parametrize("surrogate", list(ns.surrogate.BUILT_IN))
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_surrogates_under_rules(rule, surrogate, backend):
    check(backend, rule, surrogate)
