# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Running a model in evaluation mode, and leaving it as it was."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """Put the model in evaluation mode without gradients, and every module of it back in the mode it was in."""
    with kept_modes(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def kept_modes(model: nn.Module) -> Generator[None]:
    """Put every module back in the mode it was in: `train` would set all to that of the outermost, and wake up layers
    that a user keeps in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training
