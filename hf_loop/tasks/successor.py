"""k-hop successors in blocks: the edges of a ring of nodes, shuffled, and questions for the node k hops on.

The first blocks hold the edges of one directed ring, each as the node it leaves and the node it enters, in random
order, with `.` where there are fewer than would fit; the last block asks. A ring of four nodes in two blocks, and two
questions, for one hop and for three:

    n7 n2 n0 n7  |  n2 n5 n5 n0  |  +1 n0 n7 +3 n7 n0

The loss is on the nodes that answer, each predicted at the node before it. The task Depo of Physics of Language Models
4.1, in the form of "Do Language Models Need Sleep?" (https://huggingface.co/papers/2605.26099): a question for k hops
chains k edges, and a model that works in windows has seen only a part of them at a time. Here a node is one word.
"""

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers, draw_split, ragged_dataset
from .counts import plain_counts
from .tokenizer import IGNORE_INDEX, SPECIAL_TOKENS, word_tokenizer


FILL = "."
# words follow the special tokens in the order that `word_tokenizer` is given them
FILL_ID = len(SPECIAL_TOKENS)
FIRST_HOP_ID = FILL_ID + 1


@plain_counts
def successor(
    num_train: int,
    num_test: int,
    max_hops: int = 4,
    *,
    min_nodes: int = 3,
    max_nodes: int = 16,
    num_edge_blocks: int = 4,
    block_size: int = 8,
    num_queries: int = 2,
    num_names: int = 32,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate rings of nodes and questions for successors.

    Args:
        num_train (`int`): training rows; rows may repeat.
        num_test (`int`): test rows, none of which is in the training split, whatever the seeds.
        max_hops (`int`): hops of the hardest question; each question draws its number from 1 to this.
        min_nodes (`int`): nodes of the smallest ring.
        max_nodes (`int`): nodes of the largest; each row draws its number.
        num_edge_blocks (`int`): blocks with edges, which the largest ring must fit in.
        block_size (`int`): tokens of a block. A block is a window for a model that works in windows.
        num_queries (`int`): questions of a row, all in the last block.
        num_names (`int`): words for nodes, of which a ring draws its own.
        seed (`int`): seed of the draw; the same seed gives the same rows.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"`, and the tokenizer they are
        made with. Columns: `input_ids` and `labels` (`-100` where there is no label); and for the questions of a row,
        in order, `hops`. The `difficulty` is the most hops of a question of the row.

    Raises:
        ValueError: if an argument is out of range, or the edges or the questions do not fit.
    """
    sizes = {"num_train": num_train, "num_test": num_test, "max_hops": max_hops, "num_queries": num_queries}
    check_integers(sizes | {"num_edge_blocks": num_edge_blocks, "block_size": block_size}, low=1)
    check_integers({"min_nodes": min_nodes}, low=2)
    if max_nodes < min_nodes:
        raise ValueError(f"max_nodes must be at least min_nodes={min_nodes}, got {max_nodes}")
    if num_names < max_nodes:
        raise ValueError(f"num_names must be at least max_nodes={max_nodes}, got {num_names}")
    if 2 * max_nodes > num_edge_blocks * block_size:
        raise ValueError(
            f"max_nodes must be at most {num_edge_blocks * block_size // 2}, whose edges fit in {num_edge_blocks} "
            f"blocks of {block_size} tokens, got {max_nodes}"
        )
    if block_size < 3 * num_queries:
        raise ValueError(
            f"block_size must be at least {3 * num_queries} for {num_queries} questions, got {block_size}"
        )
    hops, names = (f"+{k}" for k in range(1, max_hops + 1)), (f"n{i}" for i in range(num_names))
    tokenizer = word_tokenizer([FILL, *hops, *names])
    rng = np.random.default_rng(seed)
    edge_tokens = num_edge_blocks * block_size

    def draw(count: int) -> dict[str, np.ndarray]:
        num_nodes = rng.integers(min_nodes, max_nodes + 1, size=(count, 1))
        # of every row the first `num_nodes` of these are the ring, in its order
        nodes = FIRST_HOP_ID + max_hops + rng.random((count, num_names)).argsort(axis=1)[:, :max_nodes]
        edges = _edges(nodes, num_nodes, edge_tokens, rng)
        asked_hops, asked = _questions(nodes, num_nodes, max_hops, num_queries, rng)
        input_ids = np.concatenate([edges, asked], axis=1).astype(np.int32)
        labels = np.full_like(input_ids, IGNORE_INDEX)
        labels[:, edge_tokens + 2 :: 3] = input_ids[:, edge_tokens + 2 :: 3]
        return {"input_ids": input_ids, "labels": labels, "hops": asked_hops}

    splits = DatasetDict()
    for split, count in (("train", num_train), ("test", num_test)):
        drawn = draw_split(split, count, draw)
        rows = ragged_dataset({name: [part] for name, part in drawn.items()})
        splits[split] = rows.add_column("difficulty", drawn["hops"].max(axis=1).tolist())
    return splits, tokenizer


def successor_accuracy(predictions: np.ndarray, rows: Dataset) -> list[dict[str, float | int]]:
    """Compute the share of right answers by the number of hops.

    Args:
        predictions (`np.ndarray`): `[rows, num_queries]`: the token predicted for every answer, in order.
        rows (`Dataset`): rows of a split of [`successor`], in the same order.

    Returns:
        `list[dict]`: with `hops`, `num_questions` and `accuracy`, the fewest hops first.

    Raises:
        ValueError: if there are not as many predictions as questions.
    """
    hops = np.array(rows["hops"])
    labels = np.array([[label for label in row if label != IGNORE_INDEX] for row in rows["labels"]])
    if predictions.shape != labels.shape:
        raise ValueError(f"predictions must have the shape {labels.shape} of the questions, got {predictions.shape}")
    table: list[dict[str, float | int]] = []
    for count in np.unique(hops).tolist():
        right = (predictions == labels)[hops == count]
        table.append({"hops": count, "num_questions": len(right), "accuracy": float(right.mean())})
    return table


def _edges(nodes: np.ndarray, num_nodes: np.ndarray, num_tokens: int, rng: np.random.Generator) -> np.ndarray:
    """The edges of every ring in random order `[rows, num_tokens]`, filled up on the left."""
    num_rows, max_nodes = nodes.shape
    place = np.arange(max_nodes)
    following = np.take_along_axis(nodes, (place + 1) % num_nodes, 1)
    pairs = np.stack([nodes, following], axis=2)
    is_edge = np.broadcast_to(place < num_nodes, (num_rows, max_nodes))
    pairs[~is_edge] = FILL_ID
    order = np.where(is_edge, rng.random((num_rows, max_nodes)), -1.0).argsort(axis=1)
    shuffled = np.take_along_axis(pairs, order[..., None], 1).reshape(num_rows, -1)
    return np.pad(shuffled, ((0, 0), (num_tokens - shuffled.shape[1], 0)), constant_values=FILL_ID)


def _questions(
    nodes: np.ndarray, num_nodes: np.ndarray, max_hops: int, num_queries: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The hops that are asked for `[rows, num_queries]`, and the tokens of questions and answers."""
    num_rows = len(nodes)
    start = (rng.random((num_rows, num_queries)) * num_nodes).astype(np.int64)
    hops = rng.integers(1, max_hops + 1, size=(num_rows, num_queries))
    first = np.take_along_axis(nodes, start, 1)
    answer = np.take_along_axis(nodes, (start + hops) % num_nodes, 1)
    return hops, np.stack([FIRST_HOP_ID - 1 + hops, first, answer], axis=2).reshape(num_rows, -1)
