"""Running a model for measurement."""

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Generator[None]:
    """Put the model in evaluation mode without gradients, and back in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
