"""Linear layers whose input is spikes: `spike_linear` and `SpikeLinear`.

Spikes are mostly 0, and a dense product multiplies by every one of them. Where a backend has an
event-driven product (`Backend.linear` in the table), it adds up the weights of active inputs
instead: forward, and again for the weight's gradient, with the active inputs found once. Which of
the two is faster depends on the share of active inputs and the shape;
`neurospike.layers.break_even` decides for every batch. Results are those of
`torch.nn.functional.linear` up to the order of summation.

The event-driven product is a pair of torch operators, `neurospike::<name>_linear` and
`..._linear_backward`, with the `autograd.Function` outside, as in `neurospike.ops`. A backend must
provide `words`, `find`, `forward` and `backward`; see kernels/cpu/linear.py.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from neurospike.backend import buffers, dispatch
from neurospike.ops import batching
from neurospike.ops.arguments import PAIR, check_count, check_flag
from neurospike.ops.watching import is_plain

from . import break_even

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BITS = (torch.bool, torch.uint8)
_LIBRARY = torch.library.Library("neurospike", "FRAGMENT")
# Numbers before the bits that `find` returns: whether the event-driven product is used, and whether
# there are values other than 0 and 1.
HEAD = 2


def spike_linear(
    spikes: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Return `spikes @ weight.T + bias`, as `torch.nn.functional.linear`, fast for few spikes.

    Inputs may have any values; those that are not 0 count as active, and only the time depends on
    their number. The event-driven product never multiplies by 0, so an infinite weight of a silent
    input gives no NaN; it computes in the weight's float32 or float64. 16-bit weights, autocast,
    small layers, `torch.func` and `torch.export` use torch's dense product, and so does everything
    on the backends `reference` and `triton`; on a GPU that is cuBLAS.

    Args:
        spikes: `[..., K]`, such as `[T, B, K]`; bool, uint8 or the weight's number format.
        weight: `[N, K]`.
        bias: `[N]`.
        backend: `"auto"`, or a name of `neurospike.backends()`; each may still choose the dense
            product where it is faster.

    Returns:
        `[..., N]` in the weight's format. Gradients flow to weight and bias, and to `spikes` if
        they are floating point and require it; the gradient of `spikes` and second derivatives are
        computed by dense products.

    Raises:
        TypeError: arguments that are not tensors, or number formats that do not fit.
        ValueError: shapes or devices that do not fit.
        BackendError: the backend named cannot run here; every reason is listed.
    """
    _check(spikes, weight, bias)
    return chosen(spikes, weight, bias, backend)[0]


def chosen(
    spikes: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    backend: str,
    known: tuple[Tensor, Any] | None = None,
) -> tuple[Tensor, bool]:
    """Return the product, and whether the spikes were examined and the dense product was chosen.

    known: what `find` returned, if it was called already.
    """
    # An exported program has to run on batches of any size, and without this library's operators.
    small = (
        torch.compiler.is_exporting()
        or spikes.numel() * weight.shape[0] < break_even.policy().least_products
    )
    if small and backend == "auto":
        return _dense(spikes, weight, bias), False
    row = dispatch.choose(backend, spikes.device)
    if small or spikes.numel() == 0 or not _may_use_events(row, weight):
        return _dense(spikes, weight, bias), False
    trained = torch.is_grad_enabled() and weight.requires_grad
    flat = spikes.reshape(-1, spikes.shape[-1])
    # A compiled graph serves every batch, so there the operator examines the spikes itself.
    if not torch.compiler.is_compiling():
        if known is None and break_even.promising(row, flat, weight, trained):
            known = find(row, flat)
        if known is None or not break_even.pays(row, known[1], weight, trained):
            return _dense(spikes, weight, bias), True
    if trained or (torch.is_grad_enabled() and _needs(flat, bias)):
        out = _Events.apply(row, flat, weight, bias, known)[0]
    elif known is not None:
        out = _of_known(row, flat, weight, bias, *known)
    else:
        out = getattr(torch.ops.neurospike, f"{row.name}_linear")(flat, weight, bias, False)[0]
    return out if spikes.dim() == 2 else out.view(*spikes.shape[:-1], weight.shape[0]), False


class SpikeLinear(nn.Linear):
    """A `torch.nn.Linear` whose input is spikes, with the same parameters and results.

        linear = ns.SpikeLinear(784, 1000)
        current = linear(ns.encoding.rate(images, 25, dtype=torch.uint8))  # [T, B, 784] -> 1000

    See `spike_linear` for shapes, number formats and errors of a call. The state dict is
    `nn.Linear`'s.

    Args:
        in_features: inputs K.
        out_features: outputs N.
        bias: add a learned bias.
        device: of the parameters.
        dtype: number format of the parameters.
        backend: `"auto"`, or a name of `neurospike.backends()`.

    Raises:
        TypeError, ValueError: sizes that are not whole numbers of at least 0.

    In training mode, after a batch for which the dense product was chosen, the next few batches use
    it without being examined. How many are left, `unpromising`, is all that a layer keeps from
    batch to batch besides its parameters: to resume training bit for bit, save it too, as
    `SNNTrainer` does.
    """

    unpromising = 0  # batches left that use the dense product without being examined

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            check_count("in_features", in_features, 0),
            check_count("out_features", out_features, 0),
            check_flag("bias", bias),
            device,
            dtype,
        )
        dispatch.check_name(backend)
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:
        """Return `[..., out_features]` of spikes `[..., in_features]`."""
        weight, bias = self.weight, self.bias
        # Large products evict this code from the caches, so in a small layer every line costs time.
        is_usual = _fits(input, weight, bias)
        if is_usual and input.is_cuda:
            # On a GPU every product is dense; a backend given by name must still be checked.
            dispatch.choose(self.backend, input.device)
            return functional.linear(input, weight, bias)
        if (
            is_usual
            and self.backend == "auto"
            and not input.requires_grad
            and input.numel() * weight.shape[0] < break_even.policy().least_products
        ):
            return functional.linear(input, weight, bias)
        return self.product(input)

    if TYPE_CHECKING:  # torch leaves open what a call returns
        __call__ = forward

    def product(self, spikes: Tensor, known: tuple[Tensor, Any] | None = None) -> Tensor:
        """Return what `forward` does; `known` is what `find` returned, if it was called already."""
        weight, bias = self.weight, self.bias
        _check(spikes, weight, bias)
        if known is None and self.is_resting():
            self.unpromising -= 1
            return _dense(spikes, weight, bias)
        out, in_vain = chosen(spikes, weight, bias, self.backend, known)
        if in_vain and self.training:
            self.unpromising = break_even.policy().rest
        return out

    def is_resting(self) -> bool:
        """True if the next batch uses the dense product without being examined.

        False in evaluation mode, so that evaluations do not change what training computes.
        """
        return (
            self.unpromising > 0
            and self.training
            and not torch.compiler.is_compiling()
            and not torch.are_deterministic_algorithms_enabled()
        )

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        return f"{super().extra_repr()}, backend={self.backend!r}"


def format_for(layer: nn.Module, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the number format of spikes that a layer on a device uses without a conversion.

    uint8 for a `SpikeLinear` whose backend has an event-driven product; else that of autocast, or
    `dtype` without autocast.
    """
    if isinstance(layer, SpikeLinear) and dispatch.choose(layer.backend, device).linear:
        return torch.uint8
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype


def _dense(spikes: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    wide = spikes
    if not spikes.is_floating_point():
        kind = spikes.device.type
        is_mixed = torch.is_autocast_enabled(kind)
        wide = spikes.to(torch.get_autocast_dtype(kind) if is_mixed else weight.dtype)
    trained = wide.requires_grad and torch.is_grad_enabled()
    if not (trained and is_plain(wide) and wide.nbytes >= buffers.LEAST_BYTES):
        return functional.linear(wide, weight, bias)
    out = _Product.apply(wide.reshape(-1, wide.shape[-1]), weight, bias)
    return out if wide.dim() == 2 else out.view(*wide.shape[:-1], weight.shape[0])


def _input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """Return `grad @ weight`, `[M, K]`, the largest of the gradients, in reused memory."""
    is_plain_here = type(grad) is Tensor and grad.is_cpu and not batching.is_batched((grad,))
    if not is_plain_here or torch.is_grad_enabled():
        return grad @ weight
    out = buffers.empty((grad.shape[0], weight.shape[1]), grad.dtype)
    return torch.mm(grad, weight, out=out)


class _Product(torch.autograd.Function):
    """torch's dense product, whose gradient of the input is written to reused memory."""

    @staticmethod
    def forward(ctx: Any, spikes: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(spikes, weight)
        return functional.linear(spikes, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        spikes, weight = ctx.saved_tensors
        need_spikes, need_weight, need_bias = ctx.needs_input_grad
        return (
            _input_gradient(grad, weight) if need_spikes else None,
            grad.t() @ spikes if need_weight else None,
            grad.sum(0) if need_bias else None,
        )


def _may_use_events(row: dispatch.Backend, weight: Tensor) -> bool:
    return (
        bool(row.linear)
        and weight.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled(weight.device.type)
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def _needs(spikes: Tensor, bias: Tensor | None) -> bool:
    return spikes.requires_grad or (bias is not None and bias.requires_grad)


def find(row: dispatch.Backend, spikes: Tensor) -> tuple[Tensor, Any]:
    """Find the active inputs of spikes `[M, K]`.

    Returns int64 `[HEAD + M * words]`, `HEAD` numbers followed by a bit for each input, and what
    the backend counted. The last of the numbers says whether there are values other than 0 and 1.
    """
    module, rows = dispatch.linear_of(row), len(spikes)
    count = HEAD + rows * module.words(spikes.shape[1])
    found = torch.ones(count, dtype=torch.int64, device=spikes.device)
    events = module.find(spikes.detach().contiguous(), found[HEAD:].view(rows, -1))
    found[HEAD - 1] = events.valued
    return found, events


def _of_known(
    row: dispatch.Backend,
    spikes: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    found: Tensor,
    events: Any,
) -> Tensor:
    bits = found[HEAD:].view(len(spikes), -1)
    module = dispatch.linear_of(row)
    return module.forward(
        spikes=spikes.contiguous(), weight=weight, bias=bias, bits=bits, found=events
    )


class _Events(torch.autograd.Function):
    """The pair of operators as one differentiable function."""

    @staticmethod
    def forward(
        ctx: Any,
        row: dispatch.Backend,
        spikes: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        known: tuple[Tensor, Any] | None,
    ) -> tuple[Tensor, Tensor]:
        if known is None:
            operator = getattr(torch.ops.neurospike, f"{row.name}_linear")
            out, found = operator(spikes, weight, bias, ctx.needs_input_grad[2])
        else:
            out, found = _of_known(row, spikes, weight, bias, *known), known[0]
        ctx.save_for_backward(spikes, weight, found)
        ctx.name, ctx.dtype = row.name, spikes.dtype
        ctx.mark_non_differentiable(found)
        ctx.set_materialize_grads(False)
        return out, found

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
        spikes, weight, found = ctx.saved_tensors
        _, need_spikes, need_weight, need_bias, *_ = ctx.needs_input_grad
        if grad is None:
            return (None,) * 5
        grad_weight = None
        if need_weight and torch.is_grad_enabled():  # create_graph=True
            grad_weight = grad.t() @ spikes.to(grad.dtype)
        elif need_weight:
            backward = getattr(torch.ops.neurospike, f"{ctx.name}_linear_backward")
            # Saved-tensor hooks may have changed strides or number formats.
            grad_weight = backward(grad, spikes.to(ctx.dtype), found.contiguous())
        grad_spikes = _input_gradient(grad, weight) if need_spikes else None
        return None, grad_spikes, grad_weight, grad.sum(0) if need_bias else None, None


def _define(row: dispatch.Backend) -> None:
    name = f"{row.name}_linear"
    _LIBRARY.define(
        f"{name}(Tensor spikes, Tensor weight, Tensor? bias, bool trained) -> (Tensor, Tensor)"
    )
    _LIBRARY.define(f"{name}_backward(Tensor grad, Tensor spikes, Tensor found) -> Tensor")

    def forward(
        spikes: Tensor, weight: Tensor, bias: Tensor | None, trained: bool
    ) -> tuple[Tensor, Tensor]:
        module = dispatch.linear_of(row)
        rows, width = spikes.shape
        spikes = spikes.contiguous()
        found = spikes.new_empty(HEAD + rows * module.words(width), dtype=torch.int64)
        bits = found[HEAD:].view(rows, module.words(width))
        pays = spikes.numel() > 0 and break_even.promising(row, spikes, weight, trained)
        valued = False
        if pays:
            events = module.find(spikes, bits)
            valued = events.valued
            pays = break_even.pays(row, events, weight, trained)
        found[0], found[1] = pays, valued
        if pays:
            out = module.forward(spikes=spikes, weight=weight, bias=bias, bits=bits, found=events)
        else:
            out = _dense(spikes, weight, bias)
        return out, found if trained else found[:0].clone()

    def backward(grad: Tensor, spikes: Tensor, found: Tensor) -> Tensor:
        pays, valued = found[:HEAD].tolist()
        if not pays:
            return grad.t() @ spikes.to(grad.dtype)
        module = dispatch.linear_of(row)
        bits = found[HEAD:].view(len(spikes), module.words(spikes.shape[1]))
        return module.backward(
            grad=grad, spikes=spikes.contiguous(), bits=bits, valued=bool(valued)
        )

    def fake(
        spikes: Tensor, weight: Tensor, bias: Tensor | None, trained: bool
    ) -> tuple[Tensor, Tensor]:
        words = -(-spikes.shape[1] // 64)
        size = HEAD + spikes.shape[0] * words if trained else 0
        out = weight.new_empty((spikes.shape[0], weight.shape[0]))
        return out, spikes.new_empty(size, dtype=torch.int64)

    def fake_backward(grad: Tensor, spikes: Tensor, found: Tensor) -> Tensor:
        return grad.new_empty((grad.shape[1], spikes.shape[1]))

    for device in row.device_types:
        _LIBRARY.impl(name, forward, device.upper())
        _LIBRARY.impl(f"{name}_backward", backward, device.upper())
    torch.library.register_fake(f"neurospike::{name}", fake, lib=_LIBRARY)
    torch.library.register_fake(f"neurospike::{name}_backward", fake_backward, lib=_LIBRARY)


for _row in dispatch.TABLE.values():
    if _row.linear:
        _define(_row)


def _fits(spikes: Any, weight: Tensor, bias: Tensor | None) -> bool:
    """True in the usual case: plain float32 tensors of the right shapes, all on one device."""
    return (
        type(spikes) is Tensor
        and isinstance(weight, Tensor)
        and (bias is None or isinstance(bias, Tensor))
        and spikes.dtype == weight.dtype == torch.float32
        and weight.dim() == 2
        and spikes.shape[-1:] == weight.shape[1:]
        and (bias is None or (bias.dtype == torch.float32 and bias.shape == weight.shape[:1]))
        and spikes.layout == torch.strided
        and (spikes.is_cpu or spikes.is_cuda)
        and spikes.device == weight.device
        and (bias is None or bias.device == weight.device)
    )


def _check(spikes: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if _fits(spikes, weight, bias):
        return
    for name, value in (("spikes", spikes), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and not (name == "bias" and value is None):
            hint = "; " + PAIR if isinstance(value, tuple) else ""
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}{hint}")
    if weight.dtype not in _FLOATS:
        raise TypeError(f"weight must be floating point, got {weight.dtype}; convert it")
    if weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            f"weight must be [N, K] and bias [N], got {tuple(weight.shape)} and "
            f"{None if bias is None else tuple(bias.shape)}"
        )
    if spikes.layout != torch.strided:
        raise TypeError(f"spikes must be dense, got {spikes.layout}; convert them with .to_dense()")
    if spikes.dtype not in (*_BITS, weight.dtype) and not (
        spikes.is_floating_point() and torch.is_autocast_enabled(spikes.device.type)
    ):
        raise TypeError(
            f"spikes must be bool, uint8 or {weight.dtype} as the weight is, got {spikes.dtype}; "
            f"convert them with .to({weight.dtype})"
        )
    if bias is not None and bias.dtype != weight.dtype:
        raise TypeError(f"bias must be {weight.dtype} as the weight is, got {bias.dtype}")
    if spikes.dim() < 1 or spikes.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"spikes must be [..., {weight.shape[1]}] for a weight of {tuple(weight.shape)}, got "
            f"{tuple(spikes.shape)}"
        )
    if spikes.device != weight.device or (bias is not None and bias.device != weight.device):
        where = weight.device if bias is None else f"{weight.device} and {bias.device}"
        raise ValueError(f"spikes are on {spikes.device}, the weight on {where}; move one of them")
