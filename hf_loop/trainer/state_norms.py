"""How large the state of a looped model is after its loops."""

from typing import Any

import torch


class StateNorms:
    """The mean Euclidean norm of the state after loops 1, 2, 4, 8, ..., over the real tokens of this process.

    A norm before the head leaves the scale of the state free, and nothing in the loss keeps it from growing. Where it
    grows, an absolute threshold for the change of the state says nothing.
    """

    def __init__(self) -> None:
        self._norms: dict[int, list[torch.Tensor]] = {}

    @torch.no_grad()
    def add(self, loop_states: tuple[torch.Tensor, ...], attention_mask: torch.Tensor | None) -> None:
        """Take note of the states of a batch.

        Args:
            loop_states (`tuple[torch.Tensor]`): the state after every loop, each of shape `[B, T, D]`.
            attention_mask (`torch.Tensor` of shape `[B, T]`, *optional*): 0 where a token is padding.
        """
        num_loops = 1
        while num_loops <= len(loop_states):
            norms = torch.linalg.vector_norm(loop_states[num_loops - 1], dim=-1, dtype=torch.float32)
            if attention_mask is not None and attention_mask.shape == norms.shape:
                norms = norms[attention_mask.to(norms.device, torch.bool)]
            # read when they are logged, so that the device need not be waited for
            self._norms.setdefault(num_loops, []).append(norms.mean())
            num_loops *= 2

    def logs(self) -> dict[str, float]:
        """Return the means since the last call, `state_norm_1`, `state_norm_2`, ..., and begin anew."""
        means = {f"state_norm_{loop}": torch.stack(norms).mean().item() for loop, norms in self._norms.items()}
        self.clear()
        return means

    def clear(self) -> None:
        """Forget everything."""
        self._norms.clear()


def loop_states_of(outputs: Any) -> tuple[torch.Tensor, ...] | None:
    """Return the states after every loop, `None` where a model returned none."""
    return outputs.get("loop_states") if isinstance(outputs, dict) else None
