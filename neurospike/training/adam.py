"""Torch's Adam, without what torch loads for `torch.compile`.

Most methods of torch's optimisers are marked for TorchDynamo, and the first call of one loads it:
as many seconds as `import torch` itself takes, for a training loop that compiles nothing.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


def _unmarked(method: Callable[..., Any]) -> Any:
    """Return the function that a method of torch's is made of, or itself."""
    return inspect.unwrap(method)


class Adam(torch.optim.Adam):
    """`torch.optim.Adam`, the same in its arguments, its state and every bit of its steps.

    Not for an optimiser step within `torch.compile`.
    """

    add_param_group = _unmarked(Optimizer.add_param_group)
    load_state_dict = _unmarked(Optimizer.load_state_dict)
    state_dict = _unmarked(Optimizer.state_dict)
    zero_grad = _unmarked(Optimizer.zero_grad)
    _step = _unmarked(torch.optim.Adam.step)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; the loss that `closure` computes anew, if there is one."""
        with torch.no_grad():
            return self._step(closure)
