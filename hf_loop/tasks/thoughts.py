"""Chains of thought: rows whose intermediate steps stand between the prompt and the answer."""

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .tokenizer import IGNORE_INDEX


def with_thoughts(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Put the intermediate steps of each row between its prompt and its answer, to be learned with it.

    Args:
        rows (`Dataset`): with the columns `prompt`, `thoughts`, `answer` and `difficulty`.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer of the task.

    Returns:
        `Dataset`: the same columns, with new `input_ids` and `labels`: the prompt carries no label; thoughts, answer
        and the end of the sequence are told and asked.

    Raises:
        ValueError: if the rows have no thoughts.
    """
    if "thoughts" not in rows.column_names:
        raise ValueError(f"rows must have a column 'thoughts', got {', '.join(rows.column_names)}")
    prompts = tokenizer(list(rows["prompt"]))["input_ids"]
    ends = tokenizer(
        [f"{thoughts} {answer}" for thoughts, answer in zip(rows["thoughts"], rows["answer"], strict=True)],
        add_special_tokens=False,
    )["input_ids"]
    ends = [[*end, tokenizer.eos_token_id] for end in ends]
    columns = {name: list(rows[name]) for name in ("prompt", "thoughts", "answer", "difficulty")}
    return Dataset.from_dict(
        columns
        | {
            "input_ids": [prompt + end for prompt, end in zip(prompts, ends, strict=True)],
            "labels": [[IGNORE_INDEX] * len(prompt) + end for prompt, end in zip(prompts, ends, strict=True)],
        }
    )
