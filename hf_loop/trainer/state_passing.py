"""Random state passing: a training step that starts from the memory another step ended with.

A feedback model is trained on rows of a few blocks and read for hundreds. Starting now and then from the memory of an
earlier step shows it memories that went through many more blocks than a row has: with probability 0.8, the paper's,
every fifth step starts afresh on average, and some memories are as old as twenty steps.
"""

import hashlib
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerControl, TrainerState, TrainingArguments

from .tensor_state import TensorStateCallback


FILE_NAME = "passed_feedback.safetensors"
TENSOR_NAME = "feedback"
# keeps these draws apart from others that are made from the seed and the step
DRAW = 0xFEED
# by model, since a run that was interrupted leaves its hooks behind
_attached: WeakKeyDictionary[nn.Module, list[RemovableHandle]] = WeakKeyDictionary()


class RandomStatePassing(TensorStateCallback):
    """Starts training steps of a feedback model from the memory of the step before (arXiv 2404.09173).

    With probability `config.random_state_passing`, all rows of an optimizer step start from the feedback memory that
    the first row of the optimizer step before ended with, without its gradient; else from the learned one. It works
    with the stock `Trainer`:

    ```python
    trainer = Trainer(model, args, train_dataset=rows, callbacks=[RandomStatePassing()])
    ```

    Over a backbone with loops every layer call has a memory; a step with another number of loops than the one before
    starts from the learned memory.

    The micro-batches of a step, on all processes, share one memory, that of the first row of the first one: how a
    batch is cut into micro-batches and processes changes nothing. The draw depends on `args.seed` and the step alone.
    The memory is written beside every checkpoint, in `passed_feedback.safetensors`, and the state of the trainer keeps
    its checksum, so that a resumed run repeats the uninterrupted one or says that it cannot.

    Args:
        checkpoint (`str` or `Path`, *optional*): the folder of the checkpoint that training resumes from. Only needed
            where that is neither `args.resume_from_checkpoint` nor in `args.output_dir`, since a callback is not told.

    Raises:
        ValueError: when training begins, if there is no feedback model or more than one in the model; if one process
            drives several GPUs; or if the memory of the checkpoint to resume from is not found. In a step, if the
            model runs with a cache.
    """

    file_name = FILE_NAME
    description = "feedback memory"

    def __init__(self, checkpoint: str | Path | None = None) -> None:
        super().__init__(checkpoint)
        self._probability = 0.0
        # what the last step ended with, what this step starts from, and what it ends with as far as is known
        self._passed: torch.Tensor | None = None
        self._initial: torch.Tensor | None = None
        self._ended: torch.Tensor | None = None
        self._is_first_forward = False

    def proof(self) -> dict[str, Any]:
        return {"checksum": None if self._passed is None else _checksum({TENSOR_NAME: self._passed})}

    def belongs(
        self, tensors: dict[str, torch.Tensor], facts: dict[str, str], proof: dict[str, Any], step: int
    ) -> bool:
        return _checksum(tensors) == proof["checksum"]

    def tensors_to_save(self) -> dict[str, torch.Tensor] | None:
        return None if self._passed is None else {TENSOR_NAME: self._passed}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        module = find_feedback_model(model)
        if args.n_gpu > 1:
            raise ValueError(
                f"random state passing needs one process per GPU (accelerate launch), got {args.n_gpu} GPUs in one"
            )
        self._probability = module.config.random_state_passing
        self._passed = None
        if self._probability > 0 and self.saved_proof(state):
            self._passed = self.read_saved(args, state)[TENSOR_NAME]
        self.enter(state)
        _detach(module)
        _attached[module] = [
            module.register_forward_pre_hook(self._pass_in, with_kwargs=True),
            module.register_forward_hook(self._take_out),
        ]
        # on the instance: the class says that nothing passes states
        module.has_state_passing = True

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        starts_passed = passes_state(args.seed, state.global_step, self._probability)
        self._initial = self._passed if starts_passed else None
        self._ended = None
        self._is_first_forward = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._initial = None
        if self._probability > 0:
            ended = _from_first_process(self._ended, args.device)
            # a row without a whole block has none, or zeros beside rows that have one: the older one stays
            if ended is not None and ended.any():
                self._passed = ended

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        _detach(find_feedback_model(model))

    def abandon(self, model: Any) -> None:
        _detach(find_feedback_model(model))
        self._passed = self._initial = self._ended = None

    def _pass_in(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        # what is sampled within a step, as by TRL, is no part of it
        is_step = module.training and torch.is_grad_enabled()
        initial = self._initial
        if (
            is_step
            and initial is not None
            and kwargs.get("initial_feedback") is None
            and _fits(initial, module, kwargs)
        ):
            device = next(module.parameters()).device
            kwargs = {**kwargs, "initial_feedback": initial.to(device)}
        return args, kwargs

    def _take_out(self, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
        if module.training and torch.is_grad_enabled() and self._is_first_forward:
            self._is_first_forward = False
            if outputs.cache is not None:
                raise ValueError("random state passing needs use_cache=False in training, got a model with a cache")
            if outputs.feedback is not None:
                self._ended = outputs.feedback[0].detach().clone()


def _fits(memory: torch.Tensor, module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether a memory has as many layer calls as a forward pass."""
    config: Any = module.config
    num_loops = kwargs.get("num_loops")
    calls = config.calls() if num_loops is None else config.calls(num_loops=num_loops)
    return len(memory) == (1 if config.feedback_source == "top" else len(calls))


def passes_state(seed: int, step: int, probability: float) -> bool:
    """Whether optimizer step `step` (from 0) starts from the memory of the one before: a function of the arguments."""
    return bool(np.random.default_rng([seed, step, DRAW]).random() < probability)


def find_feedback_model(model: nn.Module) -> Any:
    """Find the one `FeedbackModel` in `model`, under whatever PEFT or a trainer wrapped it into.

    Raises:
        ValueError: if there is none, or more than one.
    """
    found = [module for module in model.modules() if hasattr(type(module), "has_state_passing")]
    if len(found) != 1:
        raise ValueError(f"model must hold one feedback model, got {len(found)} in {type(model).__name__}")
    return found[0]


def _detach(module: nn.Module) -> None:
    for handle in _attached.pop(module, []):
        handle.remove()
    vars(module).pop("has_state_passing", None)


def _from_first_process(ended: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return ended
    # the other processes may have seen no whole block, and then know neither shape nor type
    layout = [None if ended is None else (ended.shape, ended.dtype)]
    torch.distributed.broadcast_object_list(layout, src=0, device=device)
    if layout[0] is None:
        return None
    if torch.distributed.get_rank() != 0 or ended is None:
        ended = torch.empty(layout[0][0], dtype=layout[0][1], device=device)
    ended = ended.to(device).contiguous()
    torch.distributed.broadcast(ended, src=0)
    return ended


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})).hexdigest()
