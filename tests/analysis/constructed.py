"""A looped model whose weights are set by hand so that loop r performs step r of a machine: pointer chasing.

A row is `<bos>`, one token for every edge `a>b` of a function on nodes, in any order, and query tokens. A query holds
a pointer, at first its own node. Each loop follows one edge of it, so that the logits of a query after r loops name
the r-th successor of its node, with a probability of 1 up to rounding.

    attention: the pointer is the query, the start of every edge its key: the end of the one that matches is read
    MLP:       the pointer is replaced by what was read

The residual stream is one-hot, without positions (SmolLM3's layers without rotary embedding). Edges and `<bos>` attend
to `<bos>`, which holds nothing, and never change. The length of every state that is computed is known, so that the
gain of its norm is, too.
"""

import torch
from transformers import SmolLM3Config

from hf_loop import LoopedConfig, LoopedForCausalLM
from hf_loop.tasks.tokenizer import BOS_ID, SPECIAL_TOKENS, word_tokenizer


NUM_NODES = 6
# the score of an edge that matches, against 0 for others: its share in the softmax is 1 in float32
MATCH = 100.0
# the input of SiLU where it is linear
GATE = 20.0
# the logit of the node that the pointer is at, against 0 for others
LOGIT = 20.0
NUM_SPECIAL = len(SPECIAL_TOKENS)


def words(num_nodes: int = NUM_NODES) -> list[str]:
    """The vocabulary: the nodes `a`, `b`, ..., and the edges `a>a`, `a>b`, ..."""
    nodes = [chr(ord("a") + node) for node in range(num_nodes)]
    return [*nodes, *(f"{start}>{end}" for start in nodes for end in nodes)]


def node_token(node: int) -> int:
    """The token of a node, as query and as answer."""
    return NUM_SPECIAL + node


def edge_token(start: int, end: int, num_nodes: int = NUM_NODES) -> int:
    """The token of an edge."""
    return NUM_SPECIAL + num_nodes + start * num_nodes + end


def make_row(successors: list[int], queries: list[int], seed: int = 0) -> torch.Tensor:
    """The row `[1, T]` of a function, given as the successor of every node, its edges shuffled, and of queries."""
    order = torch.randperm(len(successors), generator=torch.Generator().manual_seed(seed)).tolist()
    edges = [edge_token(start, successors[start], len(successors)) for start in order]
    return torch.tensor([[BOS_ID, *edges, *map(node_token, queries)]])


def chase(successors: list[int], start: int, num_steps: int) -> list[int]:
    """The pointer after 0, 1, ..., `num_steps` steps."""
    pointers = [start]
    for _ in range(num_steps):
        pointers.append(successors[pointers[-1]])
    return pointers


def make_constructed_tokenizer(num_nodes: int = NUM_NODES):
    """A tokenizer of the words, split at spaces, which begins every text with `<bos>`."""
    return word_tokenizer(words(num_nodes))


def make_constructed(
    num_nodes: int = NUM_NODES,
    num_core_layers: int = 1,
    num_prelude_layers: int = 0,
    num_coda_layers: int = 0,
    **fields,
) -> LoopedForCausalLM:
    """The looped model, in evaluation mode.

    Args:
        num_nodes (`int`): nodes of the functions.
        num_core_layers (`int`): 1, or 2 for a core whose first layer reads an edge and whose second moves the pointer.
        num_prelude_layers, num_coda_layers (`int`): layers that change nothing.
        fields: further fields of `LoopedConfig`, such as `num_loops`.
    """
    num_layers = num_prelude_layers + num_core_layers + num_coda_layers
    # pointer, start and end of an edge, what was read; flags of queries, edges and <bos>, and one unused
    hidden_size = 4 * num_nodes + 4
    backbone_config = SmolLM3Config(
        vocab_size=NUM_SPECIAL + len(words(num_nodes)),
        hidden_size=hidden_size,
        intermediate_size=2 * num_nodes,
        num_hidden_layers=num_layers,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=64,
        no_rope_layers=[0] * num_layers,
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
        bos_token_id=BOS_ID,
        eos_token_id=None,
        pad_token_id=None,
    )
    config = LoopedConfig(
        backbone_config=backbone_config,
        num_prelude_layers=num_prelude_layers,
        num_coda_layers=num_coda_layers,
        **{"num_loops": 4, **fields},
    )
    model = LoopedForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.zero_()
        _write_tokens(model, num_nodes)
        core = model.model.core_layers()
        _write_attention(core[0].self_attn, num_nodes)
        _write_mlp(core[-1].mlp, num_nodes)
    return model


def _slots(num_nodes: int) -> tuple[torch.Tensor, ...]:
    """The dimensions of the pointer, of an edge's start and end, and of what was read, each `[N]`."""
    return tuple(torch.arange(4 * num_nodes).reshape(4, num_nodes))


def _flags(num_nodes: int) -> tuple[int, int, int]:
    """The dimensions of the flags of queries, edges and `<bos>`."""
    return 4 * num_nodes, 4 * num_nodes + 1, 4 * num_nodes + 2


def _write_tokens(model: LoopedForCausalLM, num_nodes: int) -> None:
    pointer, start, end, _ = _slots(num_nodes)
    is_query, is_edge, is_bos = _flags(num_nodes)
    embeddings = model.get_input_embeddings().weight
    embeddings[BOS_ID, is_bos] = 1
    for node in range(num_nodes):
        embeddings[node_token(node), [pointer[node], is_query]] = 1
        # the normed state of a query has two entries of sqrt(D / 2)
        model.lm_head.weight[node_token(node), pointer[node]] = LOGIT / (embeddings.shape[1] / 2) ** 0.5
        for successor in range(num_nodes):
            token = edge_token(node, successor, num_nodes)
            embeddings[token, [start[node], end[successor], is_edge]] = 1


def _write_attention(attention, num_nodes: int) -> None:
    pointer, start, end, read = _slots(num_nodes)
    _, is_edge, is_bos = _flags(num_nodes)
    size = 4 * num_nodes + 4
    # entries of a normed state of one, two and three ones
    one, two, three = size**0.5, (size / 2) ** 0.5, (size / 3) ** 0.5
    nodes, sink = torch.arange(num_nodes), num_nodes
    # times sqrt(D), by which attention divides
    match = MATCH * size**0.5
    attention.q_proj.weight[nodes, pointer] = match / two
    attention.q_proj.weight[sink, is_edge] = match / three
    attention.q_proj.weight[sink, is_bos] = match / one
    attention.k_proj.weight[nodes, start] = 1 / three
    attention.k_proj.weight[sink, is_bos] = 1 / one
    attention.v_proj.weight[nodes, end] = 1 / three
    attention.o_proj.weight[read, nodes] = 1


def _write_mlp(mlp, num_nodes: int) -> None:
    pointer, _, _, read = _slots(num_nodes)
    is_query, _, _ = _flags(num_nodes)
    # entries of the normed state of a query that has read: pointer, flag, and what was read
    entry = ((4 * num_nodes + 4) / 3) ** 0.5
    moves, clears = torch.arange(2 * num_nodes).reshape(2, num_nodes)
    mlp.gate_proj.weight[:, is_query] = GATE / entry
    mlp.up_proj.weight[moves, read] = 1
    mlp.up_proj.weight[moves, pointer] = -1
    mlp.up_proj.weight[clears, read] = -1
    mlp.down_proj.weight[pointer, moves] = 1 / (GATE * entry)
    mlp.down_proj.weight[read, clears] = 1 / (GATE * entry)
