"""Muon on a CPU.

`torch.optim.Muon` orthogonalizes in bfloat16. A CPU without instructions for it emulates each product, which takes ten
to twenty times as long as float32.
"""

import math
from collections.abc import Callable
from typing import Any, overload

import torch


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, which orthogonalizes in float32 where the parameters are on a CPU.

    Arguments, groups and state are those of `torch.optim.Muon`, which also makes the steps on other devices.
    """

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make a step."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if any(parameter.device.type != "cpu" for parameter in parameters):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
        update = orthogonalize(direction, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = parameter.shape
        scale = math.sqrt(max(1, rows / columns))
        if group["adjust_lr_fn"] == "match_rms_adamw":
            scale = 0.2 * math.sqrt(max(rows, columns))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(update.to(parameter.dtype), alpha=group["lr"] * scale)


def orthogonalize(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float
) -> torch.Tensor:
    """Bring the singular values of a matrix near 1 by Newton-Schulz steps (https://kellerjordan.github.io/posts/muon).

    Args:
        matrix (`torch.Tensor` of shape `[M, N]`): the matrix.
        coefficients (`tuple[float, float, float]`): `a`, `b`, `c` of a step `X <- a X + (b A + c A A) X`, `A = X X^T`.
        num_steps (`int`): number of steps.
        eps (`float`): smallest norm that the matrix is divided by.

    Returns:
        `torch.Tensor` of shape `[M, N]`, in float32.
    """
    a, b, c = coefficients
    is_tall = matrix.shape[0] > matrix.shape[1]
    X = (matrix.T if is_tall else matrix).float()
    X = X / X.norm().clamp(min=eps)
    for _ in range(num_steps):
        A = X @ X.T
        X = torch.addmm(X, torch.addmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.T if is_tall else X
