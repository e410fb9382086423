"""Spiking layers over whole sequences: `lif`, `LIF` and the readout `LI`.

Like `torch.nn.RNN` they take `[T, B, *F]` and return the sequence and the last state. They do not
depend on a backend: which code runs the time loop changes the speed and nothing else.
"""

import functools
from collections.abc import Callable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neurospike.backend import dispatch
from neurospike.neurons import rule
from neurospike.neurons.rule import Neuron, Rule
from neurospike.neurons.surrogate import Surrogate, resolve
from neurospike.ops.arguments import check_flag, decay_of, window_of
from neurospike.ops.bounds import check_beta, check_beta_gradient, check_threshold, clamped
from neurospike.ops.time_loop import run, run_whole
from neurospike.ops.wants import SPIKES, TRACES

from .leaky import from_leaky
from .other_names import explain_other_names
from .time_axis import OverTime, over_time


@explain_other_names
def lif(
    current: Tensor,
    mem: Tensor | None = None,
    *,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    surrogate: str | Surrogate | Callable[..., Any] = "atan",
    reset: str = "subtract",
    reset_delay: bool = True,
    detach_reset: bool = False,
    neuron: Neuron | None = None,
    grad_window: float | None = None,
    beta_gradient: str = "inward",
    num_steps: int | None = None,
    return_trace: bool = False,
    backend: str = "auto",
    lengths: Tensor | Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    """Run leaky integrate-and-fire neurons over a whole sequence.

    The equations are in `neurospike.formulas`; with the default reset they are those of snnTorch's
    `Leaky` (Eshraghian et al. 2023, arXiv:2109.12894), bit for bit in float32.

    Args:
        current: input current `[T, B, *F]`; with `num_steps` `[B, *F]`, held constant and read
            once. float16, bfloat16, float32 or float64.
        mem: membrane `[B, *F]` to continue from, float64 if the current is, else float32. Default:
            zeros. With `reset_delay`, one above the threshold is reset at the first step.
        beta: decay, the factor from 0 to 1 by which each step multiplies the membrane; a number or
            a tensor that broadcasts against `F`. One that is learned may leave these bounds and is
            clamped.
        threshold: above 0; a neuron fires when its membrane is strictly greater. A number or a
            tensor that broadcasts against `F`.
        surrogate: derivative of the spike in the backward pass: a name, an object of
            `neurospike.surrogate`, or a scalar function of your own.
        reset: after a spike `"subtract"` the threshold, go to `"zero"`, or `"none"`.
        reset_delay: reset at the step after the spike (True) or at once (False).
        detach_reset: let no gradient flow through an immediate reset.
        neuron: a `neurospike.Neuron`, whose function replaces the LIF's recurrence and its reset;
            the three options of the reset then keep their defaults.
        grad_window: let the spike's gradient flow only where the membrane lies within this distance
            of the threshold (Perez-Nieves and Goodman 2021, arXiv:2105.08810). Default: everywhere.
        beta_gradient: the gradient of a beta at or beyond a bound: `"inward"` stops it only where a
            descent step would lead further out, `"clamp"` is that of torch's clamp, as in snnTorch.
        num_steps: number of steps `T >= 0` of a constant current.
        return_trace: also return the membrane at every step.
        backend: `"auto"`, or a name of `neurospike.backends()`, which runs or raises.
        lengths: how many of the T steps belong to each sample, integers `[B]` from 0 to T in any
            order: a list, or a tensor on the CPU or on the current's device. After its end a sample
            fires no spikes, its membrane and trace stay those of its last step (`mem` if it has no
            steps), no gradient flows from or to these steps, and their current has no effect,
            whatever it holds. Default: T each.

    Returns:
        `(spikes [T, B, *F], mem [B, *F])`, and with `return_trace` `trace [T, B, *F]` as a third.
        Spikes are 0 or 1 in the current's number format, membranes in the state's. Gradients flow
        to `current`, `mem`, `beta` and `threshold`.

    Raises:
        TypeError: a tensor of integers, complex numbers or another unsupported format; sequences
            that are not padded (nested tensors, `PackedSequence`), with what to write instead.
        ValueError: a wrong shape, device or option; a constant beta or threshold out of range
            (checked if it is a number, or a CPU tensor that requires no gradient); lengths outside
            0 to T (checked on the CPU; on a GPU they are clamped, since a check would wait for the
            device).
        BackendError: the backend named cannot run here; every reason is listed.
    """
    # A function given by the caller is recorded at every call: numbers it reads may have changed.
    is_plain = (
        type(beta) is type(threshold) is float
        and type(surrogate) is type(reset) is type(beta_gradient) is str
        and neuron is grad_window is None
        and not torch.compiler.is_compiling()
    )
    return run_whole(
        (_known_rule if is_plain else _checked_rule)(
            beta,
            threshold,
            beta_gradient,
            surrogate,
            reset,
            _flag("reset_delay", reset_delay),
            _flag("detach_reset", detach_reset),
            neuron,
            grad_window,
        ),
        current,
        () if mem is None else (mem,),
        (beta if is_plain else decay_of(beta, beta_gradient), threshold),
        num_steps,
        SPIKES | (TRACES if return_trace else 0),
        backend,
        lengths,
    )


def _flag(name: str, value: Any) -> bool:
    # Runs at every call, so a plain bool is returned at once.
    return value if type(value) is bool else check_flag(name, value)


def _rule(
    surrogate: Any, reset: str, delayed: bool, detached: bool, neuron: Any, grad_window: Any
) -> Rule:
    chosen = resolve(surrogate)
    own = rule.lif_of(reset, delayed, detached, neuron)
    return rule.rule_of(own, chosen.text, chosen.parameters, window_of(grad_window))


def _checked_rule(
    beta: Any, threshold: Any, beta_gradient: str, surrogate: Any, reset: str, *options: Any
) -> Rule:
    """Check the constants of a call and return its rule."""
    check_beta(beta)
    check_beta_gradient(beta_gradient)
    check_threshold(threshold, reset, options[2] is not None)
    return _rule(surrogate, reset, *options)


_known_rule = functools.lru_cache(maxsize=512)(_checked_rule)

# The arguments from which a layer's rule is made, once; changing one later would have no effect.
_MADE_OF = {"surrogate", "grad_window", "reset", "reset_delay", "detach_reset", "neuron"}


class _Neuron(OverTime):
    """Base of the layers with constants, such as decay and threshold: buffers or parameters."""

    carries_state = True  # for `Sequential`: called as layer(x, state), returns (output, state)
    segment: int | None = None  # steps after which the gradient is cut off; see `time_loop`
    beta_gradient = "inward"  # for layers pickled by a version that did not have it
    beta: Tensor

    def _keep(self, name: str, value: float | Tensor, learn: bool = False) -> None:
        """Keep `value` as a buffer or, to learn it, a parameter; an `nn.Parameter` is shared."""
        tensor = number(name, value)
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
            return
        if tensor.requires_grad:
            raise ValueError(
                f"{name} is a tensor that requires a gradient, of which a layer would keep a copy "
                f"that learns apart. Give an nn.Parameter, which it shares, or learn_{name}=True; "
                f"to compute it anew at every call, use ns.lif(current, {name}=...)"
            )
        tensor = tensor.clone() if tensor.is_floating_point() else tensor.to(_wide())
        if learn:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    def _axes(self) -> str:
        return ", batch_first=True" if self.batch_first else ""

    def _decay(self) -> Tensor:
        """Return beta from 0 to 1: one that is learned is clamped, a constant was checked."""
        beta = self._constant("beta")
        return clamped(self.beta, self.beta_gradient) if beta is None else beta

    def _constant(self, name: str) -> Tensor | None:
        """Return the named value if it is the constant that was checked, else None.

        Otherwise it is learned, or replaced by a plain tensor that may be, as by `functional_call`,
        by a parametrization and in the replicas of `DataParallel`.
        """
        value = self._buffers.get(name)
        return None if value is None or value.requires_grad else value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _MADE_OF and "rule" in self.__dict__:
            kind = type(self).__name__
            raise AttributeError(
                f"{name} is part of what the {kind} was made of and cannot be changed: it would "
                f"compute as before. Make another layer, {kind}(..., {name}=...)"
            )
        super().__setattr__(name, value)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """Load as torch does, and refuse a constant that the constructor would refuse.

        A layer that has such constants already, converted from snnTorch, loads what it saved.
        """
        before = self._wrong_constants()
        super()._load_from_state_dict(state_dict, prefix, *others)
        if self.beta_gradient == "clamp":
            self._clamp_constant()
        after = self._wrong_constants()
        if after is not None and before is None:
            errors: list[str] = others[-1]
            errors.append(f"{prefix.rstrip('.')}: {after}" if prefix else after)

    def _wrong_constants(self) -> str | None:
        """Return what is wrong with the constants, or None."""
        try:
            self._check_constants()
        except ValueError as error:
            return str(error)
        return None

    def _clamp_constant(self) -> None:
        """Clamp a constant beta once, which snnTorch and version 0.1 clamp at every step."""
        beta = self._buffers.get("beta")
        if beta is not None:
            self._buffers["beta"] = beta.clamp(0.0, 1.0)

    def _check_constants(self) -> None:
        """Raise ValueError for constants out of range; learned values are not checked."""
        if not isinstance(self.beta, nn.Parameter):
            check_beta(_values(self.beta))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Neuron":
        """Move and convert as torch does, but keep 32 bits or more, as the membrane does."""

        def converted(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            is_narrowed = found.is_floating_point() and found.itemsize < min(4, tensor.itemsize)
            return tensor.to(found.device) if is_narrowed else found

        return super()._apply(converted, recurse)


class LIF(_Neuron):
    """Leaky integrate-and-fire layer; see `lif` for the equations, shapes and errors.

        lif = LIF(beta=0.95)
        spikes, mem = lif(current)                 # [T, B, *F] -> [T, B, *F], [B, *F]
        spikes, mem = lif(more_current, mem)       # continue

    Args:
        beta: decay, the factor from 0 to 1 by which each step multiplies the membrane; a number, a
            tensor that broadcasts against `F`, or an `nn.Parameter`, which is shared and learned.
            One that is learned may leave its bounds; it is clamped where it is used.
        threshold: above 0; a neuron fires when its membrane is strictly greater. A number, tensor
            or `nn.Parameter`, as beta.
        surrogate: derivative of the spike in the backward pass: a name, an object of
            `neurospike.surrogate`, or a scalar function of your own.
        reset: after a spike `"subtract"` the threshold, go to `"zero"`, or `"none"`.
        reset_delay: reset at the step after the spike (True) or at once (False).
        detach_reset: let no gradient flow through an immediate reset.
        learn_beta: make beta a parameter.
        learn_threshold: make the threshold a parameter.
        backend: `"auto"`, or a name of `neurospike.backends()`, which runs or raises.
        neuron: a `neurospike.Neuron`, whose function replaces the LIF's recurrence and its reset.
        grad_window: let the spike's gradient flow only where the membrane lies within this distance
            of the threshold. Default: everywhere.
        beta_gradient: `"inward"` or `"clamp"`, the gradient of a beta at or beyond a bound; see
            `lif`.
        batch_first: take and return `[B, T, *F]`, traces too; the membrane stays `[B, *F]`. On a
            GPU, whose time loop needs the time axis first, this copies the current once.

    Both constants are in the state dict. `.half()` and `.bfloat16()` leave them in float32, like
    the membrane.

    Raises:
        TypeError: an argument of the wrong type, or one that only another library's neurons have,
            with what to write instead.
        ValueError: a constant out of range, or an unknown surrogate, reset or backend.
    """

    threshold: Tensor

    @explain_other_names
    def __init__(
        self,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        surrogate: str | Surrogate | Callable[..., Any] = "atan",
        reset: str = "subtract",
        reset_delay: bool = True,
        detach_reset: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        backend: str = "auto",
        neuron: Neuron | None = None,
        grad_window: float | None = None,
        beta_gradient: str = "inward",
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        self.batch_first = check_flag("batch_first", batch_first)
        self._keep("beta", beta, check_flag("learn_beta", learn_beta))
        self._keep("threshold", threshold, check_flag("learn_threshold", learn_threshold))
        if not isinstance(beta, nn.Parameter):
            check_beta(_values(self.beta))
        if not isinstance(threshold, nn.Parameter):
            check_threshold(_values(self.threshold), reset, neuron is not None)
        check_beta_gradient(beta_gradient)
        self.beta_gradient = beta_gradient
        self.surrogate = resolve(surrogate)
        self.reset, self.reset_delay = reset, check_flag("reset_delay", reset_delay)
        self.detach_reset = check_flag("detach_reset", detach_reset)
        self.neuron, self.grad_window = neuron, grad_window
        self._follow()
        dispatch.check_name(backend)
        self.backend = backend

    def _check_constants(self) -> None:
        super()._check_constants()
        if not isinstance(self.threshold, nn.Parameter):
            check_threshold(_values(self.threshold), self.reset, self.neuron is not None)

    @classmethod
    def from_snntorch(
        cls,
        leaky: nn.Module,
        surrogate: str | Surrogate | Callable[..., Any] | None = None,
        backend: str = "auto",
    ) -> "LIF":
        """Return a layer that runs a `snntorch.Leaky` over a whole sequence at once.

        Args:
            leaky: its decay, threshold, reset and surrogate are used; parameters that it learns
                are shared, not copied, whatever values training gave them, and a decay at its
                bounds has the same gradient as there (`beta_gradient="clamp"`). `init_hidden` and
                `output` concern only how it is called, and are ignored.
            surrogate: replaces its own.
            backend: see `LIF`.

        Raises:
            TypeError: not a `snntorch.Leaky`.
            ValueError: an option that this layer does not have, which is named: inhibition,
                quantised state, graded spikes, a spike_grad that is not snnTorch's, or an immediate
                reset by subtraction, which differs above the threshold.
        """
        return from_leaky(cls, leaky, surrogate, backend)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._clamp_constant()
        # A process that unpickles the layer has not recorded the user's own surrogate yet.
        self.__dict__["surrogate"] = resolve(self.surrogate)
        self._follow()

    def _follow(self) -> None:
        delayed, detached = bool(self.reset_delay), bool(self.detach_reset)
        window = getattr(self, "grad_window", None)  # layers pickled before had none
        self.rule = _rule(self.surrogate, self.reset, delayed, detached, self.neuron, window)

    @over_time
    def forward(
        self,
        current: Tensor,
        mem: Tensor | None = None,
        *,
        num_steps: int | None = None,
        return_trace: bool = False,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return `(spikes, mem)`, and with `return_trace` `(spikes, mem, trace)`; see `lif`."""
        return run(
            self.rule,
            current,
            () if mem is None else (mem,),
            (self._decay(), self.threshold),
            num_steps,
            SPIKES | (TRACES if return_trace else 0) | self._layout,
            self.backend,
            self.segment,
            lengths,
        )

    if TYPE_CHECKING:  # torch leaves open what a call returns
        __call__ = forward

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        own = f"neuron={self.neuron.step.__name__}, " if self.neuron is not None else ""
        reset = f"reset={self.reset!r}, reset_delay={self.reset_delay}, "
        window = f"grad_window={self.grad_window}, " if self.grad_window is not None else ""
        window += "beta_gradient='clamp', " if self.beta_gradient == "clamp" else ""
        return (
            f"beta={_show(self.beta)}, threshold={_show(self.threshold)}, "
            f"surrogate={self.surrogate}, {own or reset}{window}"
            f"backend={self.backend!r}{self._axes()}"
        )


class LI(_Neuron):
    """Leaky integrator, a readout that never spikes: `mem_t = beta * mem_{t-1} + current_t`.

        li = LI(beta=0.95)
        trace, mem = li(current)                   # [T, B, *F] -> [T, B, *F], [B, *F]

    Number formats and errors are those of `lif`; the trace has the membrane's format, float32 or,
    for a float64 current, float64.

    Args:
        beta: decay of the membrane per step, as for `LIF`.
        learn_beta: make it a parameter.
        backend: `"auto"`, or a name of `neurospike.backends()`, which runs or raises.
        beta_gradient: as for `LIF`.
        batch_first: take and return `[B, T, *F]`; the membrane stays `[B, *F]`.
    """

    @explain_other_names
    def __init__(
        self,
        beta: float | Tensor,
        learn_beta: bool = False,
        backend: str = "auto",
        beta_gradient: str = "inward",
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        self.batch_first = check_flag("batch_first", batch_first)
        self._keep("beta", beta, check_flag("learn_beta", learn_beta))
        if not isinstance(beta, nn.Parameter):
            check_beta(_values(self.beta))
        check_beta_gradient(beta_gradient)
        self.beta_gradient = beta_gradient
        dispatch.check_name(backend)
        self.backend = backend

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._clamp_constant()

    @over_time
    def forward(
        self,
        current: Tensor,
        mem: Tensor | None = None,
        *,
        num_steps: int | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return `(trace [T, B, *F], mem [B, *F])`."""
        mem, trace = run(
            rule.LI,
            current,
            () if mem is None else (mem,),
            (self._decay(),),
            num_steps,
            TRACES | self._layout,
            self.backend,
            self.segment,
            lengths,
        )
        return trace, mem

    if TYPE_CHECKING:  # torch leaves open what a call returns
        __call__ = forward

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        return f"beta={_show(self.beta)}, backend={self.backend!r}{self._axes()}"


def number(name: str, value: Any) -> Tensor:
    """Return a number, or a tensor of numbers, as a tensor. Raises TypeError for anything else."""
    try:
        # A plain number is kept in 32 bits or more: 16 would not hold its digits.
        tensor = torch.as_tensor(value, dtype=_wide() if isinstance(value, Real) else None)
        is_wrong = isinstance(value, bool) or tensor.is_complex() or tensor.dtype == torch.bool
        if is_wrong or (isinstance(value, nn.Parameter) and not tensor.is_floating_point()):
            raise TypeError
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number or a tensor of numbers, got {value!r}") from None
    return tensor


def _wide() -> torch.dtype:
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


def _values(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.is_meta else tensor.detach().cpu()


def _show(value: Tensor) -> str:
    is_number = value.numel() == 1 and not value.is_meta
    return f"{value.item():g}" if is_number else f"tensor{tuple(value.shape)}"
