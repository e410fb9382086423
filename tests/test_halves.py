"""Numbers of 16 bits in compiled loops: each that there is, and what is between them."""

import ctypes

import numpy as np
import pytest
import torch

from neurospike.backend import dispatch

pytest.importorskip("llvmlite")
function = dispatch.load(".kernels.cpu._function")
halves = dispatch.load(".kernels.cpu._halves")
FORMATS = list(halves.FORMS)


@pytest.fixture(params=["as here", "by hand"])
def convert(request, monkeypatch):
    """A function that converts as `converted` says, with what this processor has and without."""
    if request.param == "by hand":
        monkeypatch.setattr(halves, "_converts", lambda: False)

    @function.once
    def copied(form_in, form_out, by):
        made = function.Function(("x", "out", "n"), double=False)
        kind = function.ir.VectorType(made.kind, 16)
        with made.each(function.I64(0), made.given["n"], function.I64(16)) as i:
            place = made.place("x", made.times(i, made.bytes_of(form_in)))
            target = made.place("out", made.times(i, made.bytes_of(form_out)))
            made.store(made.load(place, kind, form_in), target, form=form_out)
        made.build.ret_void()
        return made

    def converted(x, dtype):
        out = torch.empty(x.shape, dtype=dtype)
        forms = (halves.FORMS.get(x.dtype, ""), halves.FORMS.get(dtype, ""))
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)
        kind(copied(*forms, request.param))(x.data_ptr(), out.data_ptr(), x.numel())
        return out

    return converted


def same(one, other):
    """The same bits, but for those of what is no number."""
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    numbers = ~other.isnan()
    assert torch.equal(one.signbit()[numbers], other.signbit()[numbers])


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_every_number_is_read_and_written_again(dtype, convert):
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    wide = convert(every, torch.float32)
    same(wide, every.float())
    same(convert(wide, dtype), every)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_what_is_between_them_is_rounded_to_even(dtype, convert):
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype).float()
    every = every[every.isfinite()].sort().values
    middle = (every[1:] + every[:-1]) / 2
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    parts = [middle, torch.from_numpy(bits.view(np.float32))]
    parts += [middle.nextafter(torch.tensor(end)) for end in (torch.inf, -torch.inf)]
    largest = torch.finfo(dtype).max
    parts.append(torch.tensor([largest * 1.0001, largest * 1.01, -largest * 1.01, 3e38, 1e-45]))
    x = torch.cat(parts)
    x = torch.cat((x, x[: -len(x) % 16]))
    same(convert(x, dtype), x.to(dtype))
