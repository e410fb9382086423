"""Every surrogate under every rule, on every backend that runs here.

`test_lif.py` has each rule over shapes, number formats and layouts.
"""

import pytest
from equivalence import check
from oracle import RULES

import neurospike as ns


@pytest.mark.parametrize("surrogate", list(ns.surrogate.BUILT_IN))
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_surrogates_under_rules(rule, surrogate, backend):
    check(backend, rule, surrogate)
