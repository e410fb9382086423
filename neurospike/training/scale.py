"""Device, number format and number of processes, as Lightning Fabric makes them."""

import logging
import os
import warnings
from typing import Any, Literal

import torch

from neurospike.errors import ConfigError

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def make_fabric(
    device: torch.device | str = "cpu",
    precision: Precision = "32-true",
    devices: int = 1,
    num_nodes: int = 1,
) -> Any:
    """A `lightning_fabric.Fabric` for this device type.

    precision: `"32-true"`, or `"bf16-mixed"` and `"16-mixed"`, which multiply in 16 bits (float16
    with a scaled loss) and keep weights and membranes in 32. devices: processes a machine, each
    with a device; num_nodes: machines. More than one process in all train by DDP. Under `torchrun`
    the numbers are torchrun's, under `fabric run` everything is its flags'.

    Raises ConfigError for what the device cannot do.
    """
    device = torch.device(device)
    if precision == "16-mixed" and device.type == "cpu":
        # Fabric would take bfloat16 with no more than a warning.
        raise ConfigError("precision: got 16-mixed, which a CPU cannot do; use bf16-mixed")
    # Here, because it takes seconds that `import neurospike` need not spend.
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import TorchElasticEnvironment

    # Fabric sets it for programs that fork after asking for GPUs. Without a GPU it makes every step
    # of an optimiser look for NVIDIA's library anew, which takes a tenth of a millisecond.
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    # "Using bfloat16 Automatic Mixed Precision" and the like: the run's record says it.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning_fabric")
    if _by_fabric_run():  # which refuses to be contradicted
        return Fabric()
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    chosen: int | list[int] = devices
    if device.type == "cuda" and devices == 1 and device.index is not None:
        chosen = [device.index]
    available = torch.cuda.device_count() if device.type == "cuda" else devices
    if devices > available:
        raise ConfigError(f"devices: got {devices}, but torch finds {available} CUDA devices here")
    return Fabric(
        accelerator=device.type,
        devices=chosen,
        num_nodes=num_nodes,
        precision=precision,
        strategy="ddp" if devices * num_nodes > 1 else "auto",
    )


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


def gather(fabric: Any, value: Any) -> list[Any]:
    """What each of the processes gives, by rank; all of them call it. value: can be pickled."""
    values = [value] * fabric.world_size
    if fabric.world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def _by_fabric_run() -> bool:
    return "LT_CLI_USED" in os.environ
