"""Looped models whose weights are set by hand, so that it is known which weights do what in which loop."""

import torch
from transformers import LlamaConfig

from hf_loop import LoopedConfig, LoopedForCausalLM


NUM_STATES = 3
# <bos>, a0 to a2, b0 to b2
VOCAB_SIZE = 1 + 2 * NUM_STATES
HIDDEN_SIZE = 20
GATE = 10.0


def make_machine(units: list[tuple[int, int]], inputs: list[int], outputs: list[int], moves: bool):
    """Two loops of a Llama layer whose MLP has a unit for each 1 to be copied or moved to another coordinate.

    The attention has no say, its output map being zero. `inputs` and `outputs` are the coordinates of the six tokens
    after `<bos>` in the embedding and in the head; `<bos>` has the last coordinate.
    """
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=len(units),
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
    )
    torch.manual_seed(0)
    model = LoopedForCausalLM(LoopedConfig(backbone_config=config, num_loops=2)).eval()
    layer = model.model.backbone.layers[0]
    # a state of one 1 is normed to this
    normed = HIDDEN_SIZE**0.5
    with torch.no_grad():
        for weight in (
            model.get_input_embeddings().weight,
            model.lm_head.weight,
            layer.self_attn.o_proj.weight,
            layer.mlp.gate_proj.weight,
            layer.mlp.up_proj.weight,
            layer.mlp.down_proj.weight,
        ):
            weight.zero_()
        for token, coordinate in enumerate([HIDDEN_SIZE - 1, *inputs]):
            model.get_input_embeddings().weight[token, coordinate] = 1.0
        for token, coordinate in enumerate(outputs, 1):
            model.lm_head.weight[token, coordinate] = 6.0
        for unit, (source, target) in enumerate(units):
            layer.mlp.gate_proj.weight[unit, source] = GATE / normed
            layer.mlp.up_proj.weight[unit, source] = 1 / normed
            step = 1 / torch.nn.functional.silu(torch.tensor(GATE))
            layer.mlp.down_proj.weight[target, unit] = step
            if moves:
                layer.mlp.down_proj.weight[source, unit] = -step
    return model


def repeating_machine():
    """Two machines side by side that turn from one state to the next in every loop: units 0 to 2 A's, 3 to 5 B's."""
    coordinates = list(range(2 * NUM_STATES))
    turn = [(i, i // NUM_STATES * NUM_STATES + (i + 1) % NUM_STATES) for i in coordinates]
    return make_machine(turn, coordinates, coordinates, moves=True)


def staged_machine():
    """Two machines that do one thing in loop 0 (units 0 to 5) and another in loop 1 (units 6 to 11)."""
    count = 2 * NUM_STATES
    first = [(i, count + i) for i in range(count)]
    second = [(count + i, 2 * count + i // NUM_STATES * NUM_STATES + (i + 2) % NUM_STATES) for i in range(count)]
    # copies: the first units, were they to run again, would have something to take away
    return make_machine(first + second, list(range(count)), list(range(2 * count, 3 * count)), moves=False)


def machine_rows(copies: int = 1) -> dict[str, list[dict[str, list[int]]]]:
    """Rows `<bos> token answer` of both machines, whose state two loops later is two states further."""
    rows = {}
    for offset, name in ((1, "a"), (1 + NUM_STATES, "b")):
        games = []
        for state in range(NUM_STATES):
            tokens = [0, offset + state, offset + (state + 2) % NUM_STATES]
            games.append({"input_ids": tokens, "labels": [-100, -100, tokens[-1]]})
        rows[f"train_{name}"], rows[f"test_{name}"] = games * copies, games
    return rows
