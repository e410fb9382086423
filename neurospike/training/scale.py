"""Device, number format and number of processes, as Lightning Fabric makes them.

Fabric takes seconds to import, and a run of one process without a scaled loss needs little of it:
`OneProcess` computes the same numbers without. Fabric itself is loaded where it is needed.
"""

import gc
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from neurospike.errors import ConfigError, NeuroSpikeError, needed_by

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
UNSCALED: dict[str, torch.dtype | None] = {"32-true": None, "bf16-mixed": torch.bfloat16}

# What gloo and NCCL report when another process does not answer any more.
GONE = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")


class OneProcess:
    """What `SNNTrainer` uses of a Fabric, for one process and a loss that is not scaled.

    device: as for `make_fabric`; precision: `"32-true"` or `"bf16-mixed"`. The names are Fabric's,
    and so are the numbers, bit for bit: under `"bf16-mixed"` the network gets its pictures in
    bfloat16, runs under `torch.autocast`, and what it gives comes back in float32.
    """

    world_size = 1
    global_rank = 0
    is_global_zero = True

    def __init__(self, device: torch.device | str = "cpu", precision: str = "32-true") -> None:
        kind, _, index = str(device).partition(":")
        # The first GPU, and not whichever is in use; a CPU has no number.
        self.device = torch.device(kind if kind == "cpu" else f"{kind}:{index or 0}")
        self._dtype = UNSCALED[precision]
        # Where Fabric has the state of its loss scaler, which checkpoints hold; here it is `{}`.
        self.strategy = SimpleNamespace(precision=_NoScaler())

    def setup_module(self, module: nn.Module) -> Callable[..., Any]:
        """Move a network to the device; return a function that calls it."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        module.to(self.device)
        if self._dtype is None:
            return module

        def forward(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = _cast((args, kwargs), self._dtype)
            with self.autocast():
                output = module(*args, **kwargs)
            return _cast(output, torch.get_default_dtype())

        return forward

    def setup_optimizers(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the optimiser as it is: there is no loss to scale and no process to wait for."""
        return optimizer

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to the weights' own."""
        loss.backward()

    def autocast(self) -> AbstractContextManager[Any]:
        """The number format in which the network runs, for what is run outside of it."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)

    def launch(self) -> None:
        """Start no other process."""

    def barrier(self) -> None:
        """Wait for no other process."""

    def broadcast(self, value: Any) -> Any:
        """What the first process gives, which is this one."""
        return value

    def all_reduce(self, values: Tensor, reduce_op: str = "mean") -> Tensor:
        """The sum or mean over all processes, of which there is one."""
        return values


class _NoScaler:
    """The precision of a loss that is not scaled, with nothing to save in a checkpoint."""

    scaler = None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def _cast(values: Any, dtype: torch.dtype | None) -> Any:
    """Convert the floating-point tensors among values, however nested, to a format."""

    def convert(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    return tree_map(convert, values)


def make_fabric(
    device: torch.device | str = "cpu",
    precision: Precision = "32-true",
    devices: int = 1,
    num_nodes: int = 1,
) -> Any:
    """Make what `SNNTrainer` takes as its `fabric`, for this device type.

    More than one process in all train by DDP. Under `torchrun` the numbers of processes are
    torchrun's, under `fabric run` everything is its flags'.

    Args:
        device: such as `"cpu"` or `"cuda"`.
        precision: `"32-true"`, or `"bf16-mixed"` and `"16-mixed"`, which multiply in 16 bits
            (float16 with a scaled loss) and keep weights and membranes in 32.
        devices: processes per machine, each with a device.
        num_nodes: machines.

    Returns:
        A `lightning_fabric.Fabric` for several processes, for `"16-mixed"` and under `fabric run`,
        else a `OneProcess`.

    Raises:
        ConfigError: another precision, or one that the device cannot compute in; a device that
            torch does not know or find.
    """
    if precision not in get_args(Precision):
        names = ", ".join(get_args(Precision))
        raise ConfigError(f"precision: got {precision!r}, allowed: {names}")
    device = _device(device)
    if precision == "16-mixed" and device.type == "cpu":
        # Fabric would take bfloat16 with no more than a warning.
        raise ConfigError("precision: got 16-mixed, which a CPU cannot do; use bf16-mixed")
    if _by_fabric_run():  # which refuses to be contradicted
        return _lightning()
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    available = torch.cuda.device_count() if device.type == "cuda" else devices
    if device.type == "cuda" and (device.index or 0) >= available:
        raise ConfigError(
            f"device: got {str(device)!r}, but torch finds {available} CUDA devices here; use "
            + ("cpu" if not available else "cpu or cuda")
        )
    if devices > available:
        raise ConfigError(f"devices: got {devices}, but torch finds {available} CUDA devices here")
    several = devices * num_nodes > 1
    if not several and precision in UNSCALED:
        return OneProcess(device, precision)
    chosen: int | list[int] = devices
    if device.type == "cuda" and devices == 1 and device.index is not None:
        chosen = [device.index]
    return _lightning(
        accelerator=device.type,
        devices=chosen,
        num_nodes=num_nodes,
        precision=precision,
        strategy="ddp" if several else "auto",
    )


def _device(device: Any) -> torch.device:
    """Return the device of this name. Raises ConfigError for one that torch does not know."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        # Here, because `import neurospike` need not load the configuration.
        from neurospike.config.words import about_device

        raise ConfigError(
            f"device: got {device!r}, allowed: cpu, cuda or cuda:N{about_device(device)}"
        ) from None


def _lightning(**options: Any) -> Any:
    """Make a Fabric that prints no notices."""
    with needed_by("a run of several processes or in 16-mixed", "lightning-fabric"):
        from lightning_fabric import Fabric

    # Fabric sets it for programs that fork after asking for GPUs. Without a GPU it makes every step
    # of an optimiser look for NVIDIA's library anew, which takes a tenth of a millisecond.
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    # "Using bfloat16 Automatic Mixed Precision" and the like: the run's record says it.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning_fabric")
    return Fabric(**options)


def launch(fabric: Any) -> None:
    """Start the other processes, if nobody has: `torchrun` starts them, `fabric run` joins them."""
    if not _by_fabric_run():
        fabric.launch()


def leave(fabric: Any) -> None:
    """End what `launch` began, once every process is done.

    A process that exits while threads of its group still run is aborted now and then.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        fabric.barrier()
        torch.distributed.destroy_process_group()
        gc.collect()  # the group's threads end with the wrapped model, which refers to itself


@contextmanager
def telling_who_is_gone(fabric: Any, advice: str) -> Iterator[None]:
    """Turn the error of a process that has ended into a NeuroSpikeError with this advice."""
    try:
        yield
    except RuntimeError as error:
        if fabric.world_size == 1 or not any(word in str(error) for word in GONE):
            raise
        raise NeuroSpikeError(f"another process of this run has ended; {advice}") from error


def gather(fabric: Any, value: Any) -> list[Any]:
    """Return the `value` of each process, by rank; all must call it. value: can be pickled."""
    values = [value] * fabric.world_size
    if fabric.world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def _by_fabric_run() -> bool:
    return "LT_CLI_USED" in os.environ
