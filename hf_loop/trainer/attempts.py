"""The start of a run, to which a second attempt goes back: a smaller batch after memory ran out."""

import copy
import random
from typing import Any

import numpy as np
import torch


class RunStart:
    """What a run starts from: weights, the states of given optimizers, and random numbers.

    With `auto_find_batch_size` transformers' `Trainer` starts its loop anew with a smaller batch, from whatever
    weights, optimizer and random state the attempt before had come to.

    Args:
        trainer (`Trainer`): the trainer, before its first step.
    """

    def __init__(self, trainer: Any) -> None:
        self.weights = {name: tensor.detach().cpu().clone() for name, tensor in trainer.model.state_dict().items()}
        self.parts = {
            name: copy.deepcopy(part.state_dict())
            for name in ("optimizer", "lr_scheduler")
            if (part := getattr(trainer, name)) is not None
        }
        self.random_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self.device_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self, trainer: Any) -> None:
        """Put everything back; an optimizer that the trainer made itself is made anew."""
        trainer.model.load_state_dict(self.weights)
        for name in ("optimizer", "lr_scheduler"):
            if name in self.parts:
                getattr(trainer, name).load_state_dict(self.parts[name])
            else:
                setattr(trainer, name, None)
        python, numpy, cpu = self.random_state
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if self.device_states:
            torch.cuda.set_rng_state_all(self.device_states)
