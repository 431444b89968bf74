"""Adam without an epsilon."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch


class AdamATan2(torch.optim.Optimizer):
    """Adam whose quotient is an angle, so that it needs no epsilon (https://huggingface.co/papers/2407.05872).

    With `m` and `v` the moving averages of the gradient and of its square, both corrected for their start at zero, a
    step is `p <- (1 - lr * weight_decay) * p - lr * atan2(m, sqrt(v))`. Where the two are equal it moves by
    `lr * pi / 4`, where Adam moves by `lr`; scaling a gradient changes nothing at all.

    HRM and TRM are trained with it. (Their kernel divides by the correction of `m` outside of the angle, which makes
    the first steps larger; here as in the paper.)

    Args:
        params (`Iterable`): parameters, or groups of them.
        lr (`float`): learning rate.
        betas (`tuple[float, float]`): decay of the two averages.
        weight_decay (`float`): decoupled weight decay.

    Raises:
        ValueError: if an option is out of range, or a gradient is sparse.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0:
            raise ValueError(f"lr must not be negative, got {lr}")
        if weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be at least 0 and below 1, got {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step over all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        gradient: Any = parameter.grad
        if gradient.is_sparse:
            raise ValueError("AdamATan2 takes no sparse gradients")
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            # a tensor, as torch's optimizers have it: schedulers and checkpoints know it
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step = float(state["step"])
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1) / (1 - beta1**step)
        square = state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2) / (1 - beta2**step)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(torch.atan2(mean, square.sqrt()), alpha=group["lr"])
