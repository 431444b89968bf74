"""What looks inside a model leaves it as it was: modes, gradients, hooks and weights, also when it is interrupted."""

import copy
from functools import partial

import pytest
import torch

from hf_loop.analysis import (
    MaskTraining,
    ablate,
    capture,
    effect_table,
    fit_lens,
    freeze,
    logit_lens,
    loop_answers,
    loop_states,
    patch,
    path_independence,
    run_patched,
    train_masks,
)
from hf_loop.evaluation import accuracy_over_loops, depth_controls, perplexity_over_loops
from hf_loop.models.backbone import Backbone

from ..models.composed_variants import PAIRS, make_composed
from ..models.families import CAUSAL_FAMILIES
from ..models.model_tester import random_ids


FAMILIES = CAUSAL_FAMILIES | {" over ".join(pair): partial(make_composed, *pair) for pair in PAIRS}
ROWS = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in random_ids(2, 5)]
BRIEF = MaskTraining(num_epochs=1, batch_size=2)
IDS, OTHER = random_ids(1, 5, 1), random_ids(1, 5, 2)
ANY_MODEL = {
    "capture": lambda model: capture(model, IDS),
    "train_masks": lambda model: train_masks(model, ROWS, BRIEF, outside=True),
}
WITH_LOOPS = {
    "lens": lambda model: logit_lens(model, capture(model, IDS)),
    "answers": lambda model: loop_answers(model, IDS),
    "fitted lens": lambda model: fit_lens(model, [IDS]),
    "patch": lambda model: run_patched(model, IDS, [patch(capture(model, OTHER), 0, remaining=True)]),
    "ablate": lambda model: run_patched(model, IDS, [ablate("mean", 0, source=capture(model, OTHER))]),
    "freeze": lambda model: run_patched(model, IDS, freeze(0)),
    "effects": lambda model: effect_table(model, IDS, OTHER, clean_token=1, corrupted_token=2),
    "starts": lambda model: path_independence(model, IDS, num_starts=2),
    "states": lambda model: loop_states(model, [[1, 2, 3], [3, 2]] if model.config.kind != "time" else [[1, 2, 3]]),
    "masks of loops": lambda model: train_masks(model, ROWS, BRIEF, per_loop=True),
    "accuracy": lambda model: accuracy_over_loops(model, ROWS, [1, 2]),
    "perplexity": lambda model: perplexity_over_loops(model, IDS[0], [1, 2]),
}
# over depth alone
OVER_DEPTH = {
    "controls": lambda model: depth_controls(
        model, [{"input_ids": IDS, "labels": IDS}], [{"input_ids": OTHER, "labels": OTHER}], [1]
    ),
}


def functions_of(model):
    functions = ANY_MODEL | (WITH_LOOPS if model.config.has_loops else {})
    return functions | (OVER_DEPTH if model.config.has_loops and model.config.kind != "time" else {})


def unusual(model):
    """Let half of the modules be in training and half of the weights frozen, as nobody's default is."""
    for index, module in enumerate(model.modules()):
        module.training = index % 2 == 0
    for index, weight in enumerate(model.parameters()):
        weight.requires_grad_(index % 2 == 0)
    return model


def everything(model):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: [len(getattr(module, hook)) for hook in hooks] for name, module in model.named_modules()},
        "calls": [name for name, module in model.named_modules() if getattr(module, "call_hook", None) is not None],
        "gradients": {name: (weight.requires_grad, weight.grad) for name, weight in model.named_parameters()},
        "config": model.config.to_dict(),
        "classes": {name: type(module) for name, module in model.named_modules()},
    }


class Interrupt(BaseException):
    """Stands for Ctrl-C, which is no `Exception` either."""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_left_as_it_was(family):
    model = unusual(FAMILIES[family]())
    before, weights = everything(model), copy.deepcopy(model.state_dict())
    for name, look in functions_of(model).items():
        look(model)
        assert everything(model) == before, name
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_left_as_it_was_by_what_is_interrupted(family, monkeypatch):
    model = unusual(FAMILIES[family]())
    before = everything(model)

    def interrupted(*args, **kwargs):
        raise Interrupt

    for name, look in functions_of(model).items():
        # in a layer, so that everything is under way
        with monkeypatch.context() as patched, pytest.raises(Interrupt):
            patched.setattr(type(Backbone(model.base_model).layers[-1]), "forward", interrupted)
            look(model)
        assert everything(model) == before, name
    capture(model, IDS)
