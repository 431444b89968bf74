"""A model whose answers per loop count are known, for testing what is computed from them."""

from types import SimpleNamespace
from typing import Any

import torch


VOCAB_SIZE = 16


class _FakeLoopedModel(torch.nn.Module):
    """Predicts `token + 1` after `required` loops, where a row's first token says how many it requires.

    With fewer loops it predicts token 0, which no row of the tests asks for.
    """

    def __init__(self, trained_loops: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_loops=trained_loops)
        self.device = torch.device("cpu")
        self.calls: list[tuple[int, list[int], bool]] = []

    def can_generate(self) -> bool:
        return True

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        num_loops: int | None = None,
        use_cache: bool | None = None,
    ) -> SimpleNamespace:
        assert num_loops is not None and use_cache is False
        self.calls.append((num_loops, list(input_ids.shape), self.training))
        required = input_ids[:, :1]
        prediction = torch.where(required <= num_loops, (input_ids + 1) % VOCAB_SIZE, 0)
        return SimpleNamespace(logits=torch.nn.functional.one_hot(prediction, VOCAB_SIZE).float() * 10)


def fake_looped_model(trained_loops: int = 4) -> Any:
    """A [`_FakeLoopedModel`]; it does what is asked of a `PreTrainedModel` without being one."""
    return _FakeLoopedModel(trained_loops)
