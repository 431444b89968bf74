"""What a model's answers and states tell of the computation behind them, on a task with computation graphs."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..evaluation.accuracy import padded_batches
from ..evaluation.compositionality import read_graphs
from ..evaluation.compositionality_errors import NodeValues, node_values
from ..models.evaluation_mode import evaluation_mode
from ..models.puzzle_loss import IGNORE_INDEX
from .probe import NodeProbes, node_table, probe_nodes
from .probe_states import loop_states


BATCH_SIZE = 128


def predicted_values(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset, num_loops: int | None = None
) -> list[NodeValues]:
    """Read the values of the answer's nodes from the most likely tokens at the labels of every row.

    Args:
        model (`PreTrainedModel`): a causal language model.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer of the task, one token for each word.
        rows (`Dataset`): rows of a task with graphs.
        num_loops (`int`, *optional*): loops to run, by default those of the configuration.

    Returns:
        `list[dict[str, int]]`: the values by node for each row.
    """
    depth = {} if num_loops is None else {"num_loops": num_loops}
    values: list[NodeValues] = []
    with evaluation_mode(model):
        for batch in padded_batches(rows, BATCH_SIZE):
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            given = {name: batch[name] for name in ("input_ids", "attention_mask")}
            predicted = model(**given, use_cache=False, **depth).logits[:, :-1].argmax(-1)
            for tokens, labels in zip(predicted, batch["labels"][:, 1:], strict=True):
                nodes = rows["answer_nodes"][len(values)]
                words = tokenizer.convert_ids_to_tokens(tokens[labels != IGNORE_INDEX][-len(nodes) :].tolist())
                values.append(node_values(" ".join(words), nodes))
    return values


def probe_graph_nodes(model: Any, rows: Dataset, num_loops: int | None = None, seed: int = 0) -> NodeProbes:
    """Fit a probe for every node of the graph and every loop to half of the rows, and measure it on the others.

    Args:
        model (`PreTrainedModel`): a model with loops.
        rows (`Dataset`): rows of a task with graphs, of one difficulty, so that they share their nodes. The states
            are those of the prompt's tokens, of which the best is chosen for each node, or of its last token where
            prompts differ in length.
        num_loops (`int`, *optional*): loops to run, by default those of the configuration.
        seed (`int`, *optional*, defaults to 0): seed of the split and of the control labels.

    Raises:
        ValueError: if the rows share no node, or the model has no loops.
    """
    table = node_table(list(read_graphs(rows)))
    prompts: list[Sequence[int]] = [
        ids[: next(index for index, label in enumerate(labels) if label != IGNORE_INDEX)]
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)
    ]
    positions = None if len(set(map(len, prompts))) == 1 else -1
    states = loop_states(model, prompts, positions, num_loops=num_loops)
    return probe_nodes(states, table.values, table.types, depths=table.depths, seed=seed)
