"""How a training step is run: as one CUDA graph where that can be, else operation by operation.

Both give the same weights, metrics and random numbers: on a CUDA device the optimiser reads its
learning rate from the device in both. What a graph cannot notice is checked before every epoch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from neurospike.errors import GraphError

from .graph import Graphed, cuda_of

if TYPE_CHECKING:
    from .trainer import SNNTrainer

Mode = Literal["auto", "on", "off"]


class Stepper:
    """Runs the steps of a trainer.

    Attributes:
        why_not: why steps are not replayed as a graph; None if they are, or will be.
        replayed: steps that were.
    """

    def __init__(self, trainer: "SNNTrainer", mode: Mode) -> None:
        """Raise ValueError for another mode, GraphError for `"on"` where there can be no graph."""
        if mode not in get_args(Mode):
            raise ValueError(f"cuda_graph must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        self.trainer, self.mode = trainer, mode
        self.replayed = 0
        self._cuda = cuda_of(trainer.device)
        groups = trainer.optimizer.param_groups
        can_record = all(group.get("fused") or group.get("capturable") for group in groups)
        self._rates = Rates(trainer.optimizer, trainer.device) if can_record else None
        self._graphed: Graphed | None = None
        self._recorded: object = None  # what model and optimiser were when a step was recorded
        self.why_not = "cuda_graph is off" if mode == "off" else self._obstacle()
        self._is_told = mode == "off" or self._cuda is None
        if mode == "on" and self.why_not is not None:
            raise _refused(self.why_not)

    def start(self) -> None:
        """Check, before an epoch, that steps can be replayed and are still what was recorded."""
        if self.why_not is None:
            self.why_not = _hook_of(self.trainer.model, self.trainer.optimizer)
        if self.why_not is not None and not self._is_told:
            self._give_up(self.why_not)
        if self._graphed is not None and self._graphed.replays and self._recorded != self._now():
            self.forget()

    def forget(self) -> None:
        """Drop the recorded graph: weights or the optimiser's state have moved in memory."""
        self._graphed = None

    def step(
        self, images: Tensor, labels: Tensor, share: float, lengths: Tensor | None = None
    ) -> Tensor:
        """Run one step; returns its `metrics.figures`."""
        if self._cuda is None or self._rates is None:
            return self.trainer.compute_step(images, labels, share, lengths)
        self._rates.fill()
        if self.why_not is None and share == 1:
            self._graphed = self._graphed or Graphed(self._compute, self._cuda)
            try:
                given = (images, labels) if lengths is None else (images, labels, lengths)
                return self._run(self._graphed, *given)
            except GraphError as error:
                # Recording allocates gradients without computing them.
                self.trainer.model.zero_grad(set_to_none=True)
                self._give_up(error.reason)
        return self._compute(images, labels, lengths, share)

    def _compute(
        self, images: Tensor, labels: Tensor, lengths: Tensor | None = None, share: float = 1.0
    ) -> Tensor:
        assert self._rates is not None
        with self._rates.on_device():
            return self.trainer.compute_step(images, labels, share, lengths)

    def _run(self, graphed: Graphed, *given: Tensor) -> Tensor:
        """Run the step, record it or replay it."""
        if graphed.replays:
            before = graphed.replays
            found: Tensor = graphed(*given)
            self.replayed += graphed.replays - before
            return found.clone()  # the next replay writes over it
        model = self.trainer.model
        values = _plain_values(model)
        model.zero_grad(set_to_none=True)  # so that gradients belong to the graph's memory
        found = graphed(*given).clone()
        if graphed.replays:
            self.replayed += 1
            self._recorded = self._now()
            # Python has run for this step, but will not for the next: nothing there may change.
            changed = _changed(values, _plain_values(model))
            if changed is not None:
                self._give_up(f"{changed} changes from step to step")
        return found

    def _now(self) -> object:
        """Return what a graph depends on in model, optimiser and trainer, to be compared."""
        trainer = self.trainer
        optimizer, criterion = trainer.optimizer, trainer.criterion
        parts = [trainer.model, *([criterion] if isinstance(criterion, nn.Module) else [])]
        tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
        for state in optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
        options = [
            (key, value)
            for group in optimizer.param_groups
            for key, value in group.items()
            if key not in ("params", "lr", "capturable") and not isinstance(value, Tensor)
        ]
        places = [(tensor.data_ptr(), tensor.requires_grad) for tensor in tensors]
        given = (criterion, trainer.penalty, trainer.on_output, trainer.clip)
        return places, options, given, [_plain_values(part) for part in parts]

    def _obstacle(self) -> str | None:
        trainer = self.trainer
        if self._cuda is None:
            return f"the device is {trainer.device}, and only a CUDA device replays graphs"
        if trainer.fabric.world_size > 1:
            return "several processes train together"
        if trainer.meter.scaled:
            return "with 16-mixed the host waits to see whether a scaled gradient overflowed"
        if self._rates is None:
            name = type(trainer.optimizer).__name__
            return f"{name} was not made with fused=True or capturable=True"
        return None

    def _give_up(self, why: str) -> None:
        self._graphed, self.why_not = None, why
        if self.mode == "on":
            raise _refused(why)
        self._is_told = True
        if self.trainer.fabric.is_global_zero:
            print(f"steps are not replayed as one CUDA graph: {why}", flush=True)  # noqa: T201


class Rates:
    """Learning rates as a graph reads them: tensors on the device, during a step only.

    Between two steps the optimiser has plain numbers, for schedules, records and checkpoints.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer, self.device = optimizer, device
        self._tensors: list[Tensor] = []  # float32, as fused optimisers read it
        self._values: list[float] = []

    def fill(self) -> None:
        """Write those rates to the device that have changed since the last step."""
        groups = self.optimizer.param_groups
        for _ in groups[len(self._tensors) :]:
            self._tensors.append(torch.zeros((), dtype=torch.float32, device=self.device))
            self._values.append(0.0)
        for k, (group, tensor) in enumerate(zip(groups, self._tensors)):
            rate = group["lr"]
            if isinstance(rate, Tensor):  # the user's; to read it here would wait for the device
                tensor.copy_(rate)
            elif rate != self._values[k]:
                tensor.fill_(rate)
                self._values[k] = rate

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Let the optimiser read its rates from the device, so that it can be recorded."""
        groups = self.optimizer.param_groups
        kept = [(group["lr"], group.get("capturable")) for group in groups]
        for group, tensor in zip(groups, self._tensors):
            group["lr"] = tensor
            if "capturable" in group:
                group["capturable"] = True  # torch asks for it, also of fused optimisers
        try:
            yield
        finally:
            for group, (rate, capturable) in zip(groups, kept):
                group["lr"] = rate
                if "capturable" in group:
                    group["capturable"] = capturable


def _refused(why: str) -> GraphError:
    return GraphError(
        f"cuda_graph: got on, but steps cannot be replayed as one graph: {why}. Use auto or off",
        why,
    )


def _hook_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """Return where there is a hook, which no replay would call; None if there is none."""
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks)
        if any((*hooks, module._backward_hooks, module._backward_pre_hooks)):
            return f"{name or 'the model'} has a hook, which no replay would call"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "the optimiser has a hook, which no replay would call"
    return None


def _plain_values(module: nn.Module) -> dict[str, object]:
    """Return every number and string that a module and its parts keep in Python, by name."""
    return {
        f"{name}.{key}".removeprefix("."): value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, (bool, int, float, str))
    }


def _changed(before: dict[str, object], after: dict[str, object]) -> str | None:
    return next((key for key, value in after.items() if before.get(key) != value), None)
