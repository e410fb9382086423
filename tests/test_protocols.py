"""What backends promise in `neurospike.backend.protocols` is what their functions take."""

import inspect

import pytest

from neurospike.backend import dispatch, protocols

COLUMNS = {
    "module": protocols.Scan,
    "linear": protocols.Linear,
    "layer": protocols.LinearScan,
    "delay": protocols.Delay,
}
PROMISES = [
    (row.name, column)
    for row in dispatch.TABLE.values()
    for column in COLUMNS
    if row.fused and getattr(row, column)
]


@pytest.mark.parametrize(("name", "column"), PROMISES)
def test_a_fused_backend_takes_what_its_protocol_says_by_name_only(name, column):
    pytest.importorskip(name)
    row, protocol = dispatch.TABLE[name], COLUMNS[column]
    module = dispatch.load(getattr(row, column))
    for function in ("forward", "backward"):
        promised = dict(inspect.signature(getattr(protocol, function)).parameters)
        more = set()
        if promised.pop("more", None) is not None:
            more |= {"saved"} if row.checkpoint_every else set()
            more |= {"by_sample"} if row.by_sample else set()
        del promised["self"]
        taken = inspect.signature(getattr(module, function)).parameters
        assert set(taken) == set(promised) | more
        assert all(one.kind is one.KEYWORD_ONLY for one in taken.values())


def test_the_reference_is_stepped_as_its_protocol_says():
    pytest.importorskip("snntorch")
    module = dispatch.load(dispatch.TABLE["reference"].module)
    promised = list(inspect.signature(protocols.Stepped.scan).parameters)
    assert list(inspect.signature(module.scan).parameters) == promised[1:]
