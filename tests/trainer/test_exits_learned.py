"""On a small task the objectives do what they are for: the gate finds the tokens that gain, and exits differ."""

import torch

from hf_loop import ExitObjective
from hf_loop.models.exit_losses import exit_log_probabilities

from .tiny import tiny_model


NUM_LOOPS = 4


def rows(num_rows: int, generator: torch.Generator) -> torch.Tensor:
    """Rows in which half of the tokens say what comes next, and after the others comes anything."""
    input_ids = torch.randint(3, 32, (num_rows, 12), generator=generator)
    for position in range(1, 12):
        last = input_ids[:, position - 1]
        input_ids[:, position] = torch.where(last < 17, (5 * last) % 29 + 3, input_ids[:, position])
    return input_ids


def learn(model, num_steps: int, learning_rate: float, **options) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    model.train()
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / num_steps)
        input_ids = rows(16, generator)
        model(input_ids, labels=input_ids, use_cache=False, num_loops=NUM_LOOPS, **options).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def measure(model) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses after every loop and the gate's logits, each `[N, NUM_LOOPS]`, of tokens that were not learned."""
    input_ids = rows(128, torch.Generator().manual_seed(1))
    outputs = model.eval()(input_ids, num_loops=NUM_LOOPS, output_loop_states=True, output_loop_logits=True)
    targets = input_ids[:, 1:, None]
    losses = [-logits[:, :-1].log_softmax(-1).gather(-1, targets)[..., 0] for logits in outputs.loop_logits]
    gate_logits = [model.model.exit_gate_logits(state)[:, :-1] for state in outputs.loop_states]
    return torch.stack(losses, -1).flatten(0, 1), torch.stack(gate_logits, -1).flatten(0, 1)


def ranked_right(scores: torch.Tensor, is_positive: torch.Tensor) -> float:
    """The share of pairs, one of each kind, in which the positive one has the larger score; 0.5 is chance."""
    return (scores[is_positive][:, None] > scores[~is_positive]).float().mean().item()


def test_the_gain_stage_ranks_the_tokens_whose_next_loop_gains_nothing():
    model = tiny_model(exit_gate=True, loop_norm="final")
    learn(model, 80, 1e-2)
    torch.nn.init.zeros_(model.model.exit_gate.weight)  # a random one may be right by chance
    learn(model, 60, 3e-2, exit_objective=ExitObjective("gain", gain_slope=100.0))
    losses, gate_logits = measure(model)
    for loop in range(NUM_LOOPS - 1):
        gains_nothing = losses[:, loop] - losses[:, loop + 1] <= 0.005
        assert 0.2 < gains_nothing.float().mean() < 0.9
        assert ranked_right(gate_logits[:, loop], gains_nothing) > 0.7


def test_exits_are_alike_with_the_entropy_of_each_token_and_differ_with_that_of_the_batch():
    exits = {}
    for kind in ("expected", "batch_average"):
        model = tiny_model(exit_gate=True, loop_norm="final")
        learn(model, 80, 1e-2, exit_objective=ExitObjective(kind, entropy_weight=0.1))
        exits[kind] = exit_log_probabilities(measure(model)[1])
    depths = torch.arange(1.0, NUM_LOOPS + 1)
    uniform = torch.full((NUM_LOOPS,), 1 / NUM_LOOPS)
    spread, entropy = {}, {}
    for kind, log_probabilities in exits.items():
        probabilities = log_probabilities.exp()
        # on average, both use every loop
        assert torch.allclose(probabilities.mean(0), uniform, atol=0.15)
        spread[kind] = (probabilities @ depths).std().item()
        entropy[kind] = -(probabilities * log_probabilities).sum(1).mean().item()
    assert spread["batch_average"] > 2 * spread["expected"]
    assert entropy["batch_average"] < entropy["expected"]
