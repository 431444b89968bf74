"""Losses for early exits against loops over tokens, written from the papers' formulas."""

import math

import pytest
import torch

from hf_loop.models import exit_losses
from hf_loop.models.exit_losses import ExitObjective, exit_log_probabilities

from .looped_variants import VARIANTS, tiny_looped
from .model_tester import random_ids


KINDS = ("expected", "batch_average", "gain", "distillation")
# none of them at its default, and gains of random weights on both sides of the threshold
SETTINGS = {"entropy_weight": 0.3, "gain_slope": 4.0, "gain_threshold": 0.2, "distillation_weight": 0.6}
GATED = {
    "no norm": {"num_prelude_layers": 1, "num_coda_layers": 1, "injection": "add"},
    "own norm": {"loop_norm": "own"},
    "final norm": {"loop_norm": "final"},
    "damped": {"num_coda_layers": 1, "loop_update": "damped"},
}


def objective(kind: str) -> ExitObjective:
    return ExitObjective(kind, **SETTINGS)


def gated(variant: str = "no norm", **fields):
    """A looped model whose gate says different things of different tokens."""
    return tiny_looped(**GATED[variant], exit_gate=True, **fields)


def batch(seed: int = 0, weighted: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    input_ids = random_ids(3, 8, seed)
    labels = input_ids.masked_fill(torch.rand(3, 8, generator=generator) < 0.4, -100)
    inputs = {"input_ids": input_ids, "labels": labels}
    return inputs | ({"loss_weights": torch.rand(3, 8, generator=generator)} if weighted else {})


def plain_loss(model, kind: str, num_loops: int, count: int | None = None, **inputs) -> torch.Tensor:
    """The loss of a batch, token by token and loop by loop."""
    labels = inputs.pop("labels")
    weights = inputs.pop("loss_weights", torch.ones(labels.shape))
    outputs = model(**inputs, num_loops=num_loops, output_loop_states=True, output_loop_logits=True)
    total, average, total_weight, num_tokens = 0.0, [0.0] * num_loops, 0.0, 0
    for row in range(labels.shape[0]):
        for position in range(labels.shape[1] - 1):
            target, weight = labels[row, position + 1], weights[row, position + 1]
            if target == -100:
                continue
            num_tokens += 1
            logs = [logits[row, position].log_softmax(-1) for logits in outputs.loop_logits]
            losses = [-log[target] for log in logs]
            if kind == "distillation":
                long = logs[-1].detach()
                divergences = [(long.exp() * (long - short)).sum() for short in logs[:-1]]
                total += weight * (losses[-1] + SETTINGS["distillation_weight"] * sum(divergences) / (num_loops - 1))
                continue
            leaves = [model.model.exit_gate_probability(state[row, position]) for state in outputs.loop_states]
            if kind == "gain":
                for loop in range(num_loops - 1):
                    gain = max(0.0, (losses[loop] - losses[loop + 1]).item())
                    label = 1 / (1 + math.exp(-SETTINGS["gain_slope"] * (gain - SETTINGS["gain_threshold"])))
                    error = -label * (1 - leaves[loop]).log() - (1 - label) * leaves[loop].log()
                    total += weight * error / (num_loops - 1)
                continue
            stays, exits = torch.ones(()), []
            for loop in range(num_loops - 1):
                exits.append(leaves[loop] * stays)
                stays = stays * (1 - leaves[loop])
            exits.append(stays)
            total += weight * sum(exit * loss for exit, loss in zip(exits, losses, strict=True))
            if kind == "expected":
                total += weight * SETTINGS["entropy_weight"] * sum(exit * exit.log() for exit in exits)
            average = [sum_so_far + weight * exit for sum_so_far, exit in zip(average, exits, strict=True)]
            total_weight += weight
    if kind == "batch_average":
        average = [exit / total_weight for exit in average]
        divergence = sum(exit * (exit * num_loops).log() for exit in average)
        total += SETTINGS["entropy_weight"] * divergence * total_weight
    return total / (count or num_tokens)


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(found, expected, scale: float = 1e-4):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, atol=scale * gradient.abs().max().clamp(min=1e-2).item(), rtol=1e-3, msg=name
        )


@pytest.mark.parametrize("readouts_per_chunk", [5, 1024])
@pytest.mark.parametrize("variant", GATED)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_equal_the_formulas(kind, variant, readouts_per_chunk, monkeypatch):
    monkeypatch.setattr(exit_losses, "READOUTS_PER_CHUNK", readouts_per_chunk)
    model = gated(variant).train()
    for num_loops in (2, 4):
        loss = model(**batch(), num_loops=num_loops, exit_objective=objective(kind)).loss
        expected = plain_loss(model, kind, num_loops, **batch())
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
        found, wanted = gradients(model, loss), gradients(model, expected)
        if kind == "gain":
            # trains the gate alone; by hand, the states have a gradient, too
            assert set(found) == {"model.exit_gate.weight", "model.exit_gate.bias"}
            wanted = {name: wanted[name] for name in found}
        assert_same_gradients(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_tokens_of_a_step_divides_the_sum(kind):
    model = gated()
    for count in (7, torch.tensor(7)):
        loss = model(**batch(), num_items_in_batch=count, exit_objective=objective(kind)).loss
        torch.testing.assert_close(loss, plain_loss(model, kind, 3, count=7, **batch()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_are_shifted_already_and_another_ignored_label(kind):
    model, inputs = gated(), batch(weighted=False)
    expected = model(**inputs, exit_objective=kind).loss
    shifted = torch.nn.functional.pad(inputs["labels"], (0, 1), value=-100)[:, 1:].contiguous()
    assert torch.equal(model(**inputs, shift_labels=shifted, exit_objective=kind).loss, expected)
    labels = inputs["labels"].masked_fill(inputs["labels"] == -100, 1)
    assert torch.equal(model(inputs["input_ids"], labels=labels, ignore_index=1, exit_objective=kind).loss, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_add_up_to_their_batch_where_no_average_is_taken(kind):
    model, inputs = gated(), batch()
    count = (inputs["labels"][:, 1:] != -100).sum()
    options = {"num_items_in_batch": count, "exit_objective": objective(kind)}
    whole = model(**inputs, **options).loss
    rows = [{name: value[row : row + 1] for name, value in inputs.items()} for row in range(3)]
    parts = sum(model(**row, **options).loss for row in rows)
    if kind == "batch_average":
        # the average over fewer tokens is further from uniform: the divergence is convex
        assert whole + 1e-4 < parts
    else:
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


def test_with_one_token_the_batch_average_is_the_entropy_of_the_token():
    model, inputs = gated(), batch()
    labels = torch.full_like(inputs["labels"], -100)
    labels[1, 4] = 5
    inputs = {"input_ids": inputs["input_ids"], "labels": labels, "num_loops": 4}
    of_average, of_token = (model(**inputs, exit_objective=objective(kind)).loss for kind in KINDS[1::-1])
    torch.testing.assert_close(of_average - of_token, torch.tensor(SETTINGS["entropy_weight"] * math.log(4)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_loop_has_one_exit(kind):
    model, inputs = gated(), batch(weighted=False)
    loss = model(**inputs, num_loops=1, exit_objective=objective(kind)).loss
    expected = 0.0 if kind == "gain" else model(**inputs, num_loops=1).loss
    torch.testing.assert_close(loss, torch.as_tensor(expected))
    # a step at one loop must be possible in every process
    assert model.train()(**inputs, num_loops=1, exit_objective=objective(kind)).loss.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_labels_adds_nothing(kind):
    model = gated()
    input_ids = random_ids(2, 5)
    labels = torch.full_like(input_ids, -100)
    loss = model(input_ids, labels=labels, num_items_in_batch=9, exit_objective=kind).loss
    assert loss == 0
    assert all(gradient.abs().max() == 0 for gradient in gradients(model, loss).values())


def test_probabilities_of_certain_gates_are_finite():
    gate_logits = torch.tensor([[200.0, 3.0, 0.0], [-200.0, 200.0, 0.0], [-200.0, -200.0, 0.0]], requires_grad=True)
    log_probabilities = exit_log_probabilities(gate_logits)
    probabilities = log_probabilities.exp()
    torch.testing.assert_close(probabilities, torch.eye(3))
    (probabilities * log_probabilities).sum().backward()
    assert gate_logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_and_16_bit_weights(kind):
    model, inputs = gated(), batch()
    expected = gradients(model.train(), model(**inputs, exit_objective=kind).loss)
    model.activation_checkpointing_enable()
    assert_same_gradients(gradients(model, model(**inputs, exit_objective=kind).loss), expected)
    half = gated().to(torch.bfloat16)
    loss = half(**inputs, exit_objective=kind).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(gated()(**inputs, exit_objective=kind).loss.item(), rel=0.1)


@pytest.mark.parametrize("kind", ["expected", "batch_average", "distillation"])
def test_every_parameter_gets_gradient(kind):
    model = gated("no norm").train()
    found = gradients(model, model(**batch(), exit_objective=kind).loss)
    without = {name for name, _ in model.named_parameters()} - found.keys()
    gate = {"model.exit_gate.weight", "model.exit_gate.bias"}
    assert without == (gate if kind == "distillation" else set())


def test_the_loss_of_an_objective_leaves_the_other_outputs_alone():
    model, inputs = gated(), batch()
    plain = model(**inputs)
    outputs = model(**inputs, exit_objective="expected")
    assert torch.equal(outputs.logits, plain.logits)
    assert plain.loss != outputs.loss
    assert outputs.loop_logits is None
    assert len(model(**inputs, exit_objective="expected", output_loop_logits=True).loop_logits) == 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_distillation_needs_no_gate(variant):
    model = tiny_looped(**VARIANTS[variant] | {"exit_gate": False}).train()
    loss = model(**batch(), exit_objective="distillation").loss
    assert loss > model(**batch()).loss
    loss.backward()


def test_what_cannot_be_computed_is_refused():
    inputs = batch()
    with pytest.raises(ValueError, match="`exit_objective` must be one of expected, .* got 'entropy'"):
        gated()(**inputs, exit_objective="entropy")
    for kind in KINDS[:3]:
        with pytest.raises(ValueError, match=f"`exit_objective` '{kind}' needs a model with `exit_gate=True`"):
            tiny_looped()(**inputs, exit_objective=kind)
    with pytest.raises(ValueError, match="`exit_objective` 'expected' needs `labels`"):
        gated()(inputs["input_ids"], exit_objective="expected")
    with pytest.raises(ValueError, match="`cache` must be None"):
        gated()(**inputs, past_key_values=gated()(inputs["input_ids"]).past_key_values, exit_objective="expected")
    with pytest.raises(ValueError, match="`loss_weights` must have the shape"):
        gated()(**inputs | {"loss_weights": torch.ones(3, 7)}, exit_objective="expected")
