"""What a study measures of a trained model: exact match by difficulty, loops and votes, and what an answer costs."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.call_hooks import hook_calls
from ..models.evaluation_mode import evaluation_mode
from ..models.puzzle_loss import IGNORE_INDEX
from .accuracy import padded_batches
from .flops import forward_flops, generation_flops
from .readout_batches import even_batches
from .running import default_generation


BATCH_SIZE = 128
SAMPLING_SEED = 0


@dataclass
class Cell:
    """Answers to the rows of one difficulty, given in one way.

    Args:
        loops (`int`, *optional*): loops of the model; `None` for a model without loops.
        votes (`int`): answers that were sampled for each row; 1 is the most likely answer.
        difficulty (`int`): the difficulty of the rows.
        num_rows (`int`): how many rows.
        num_right (`int`): rows with the whole answer right.
        flops (`float`): floating-point operations for one answer, in the mean: the prompt is read once, and every
            vote writes its tokens.
    """

    loops: int | None
    votes: int
    difficulty: int
    num_rows: int
    num_right: int
    flops: float

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.num_right / self.num_rows


def measure_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    loops: Sequence[int | None],
    votes: Sequence[int] = (1,),
    thoughts: bool = False,
    on_cell: Callable[[], object] = lambda: None,
) -> list[Cell]:
    """Measure exact match on the rows of a task.

    Without thoughts and votes the answers are predicted with the right tokens before them: all of an answer is right
    there exactly if greedy decoding writes it.

    Args:
        model (`PreTrainedModel`): a causal language model.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer of the task.
        rows (`Dataset`): rows with `prompt`, `answer`, `difficulty`, `input_ids` and `labels`.
        loops (`Sequence[int | None]`): the loop counts; `None` runs the model as it is configured.
        votes (`Sequence[int]`, *optional*): numbers of sampled answers.
        thoughts (`bool`, *optional*): whether the model writes intermediate steps before its answer.
        on_cell (`Callable`, *optional*): called after every measured setting.

    Raises:
        ValueError: if votes are asked for, and the answers of the task do not stand in its rows.
    """
    difficulties = list(rows["difficulty"])
    cells = []
    with evaluation_mode(model):
        for num_loops in loops:
            depth = {} if num_loops is None else {"num_loops": num_loops}
            for count in votes:
                if thoughts or count > 1:
                    right, new_tokens = written_answers(model, tokenizer, rows, count, thoughts, depth)
                else:
                    right, new_tokens = predicted_answers(model, rows, depth), None
                by_difficulty: dict[int, list[int]] = defaultdict(list)
                for index, difficulty in enumerate(difficulties):
                    by_difficulty[difficulty].append(index)
                for difficulty, indices in sorted(by_difficulty.items()):
                    flops = answer_flops(model, rows, indices, count, new_tokens, depth)
                    num_right = sum(right[index] for index in indices)
                    cells.append(Cell(num_loops, count, difficulty, len(indices), num_right, flops))
                on_cell()
    return cells


def answer_lengths(rows: Dataset) -> list[int]:
    """Return the number of tokens of every answer: its words, or the column `answer_length`."""
    if "answer_length" in rows.column_names:
        return list(rows["answer_length"])
    return [len(answer.split()) for answer in rows["answer"]]


def with_tokenizer(rows: Dataset, tokenizer: PreTrainedTokenizerBase, examples: Dataset | None = None) -> Dataset:
    """Return rows of a task in the tokens of another tokenizer: the text of the prompt, a space, and the answer.

    Only the answer is asked. Rows that ask for it in parallel become rows that tell it token by token.

    Args:
        rows (`Dataset`): rows with `prompt`, `answer` and `difficulty`.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer of the model to measure.
        examples (`Dataset`, *optional*): solved rows that stand before every prompt, each on a line.

    Raises:
        ValueError: if the tokenizer does not know a word of them.
    """
    solved = [] if examples is None else zip(examples["prompt"], examples["answer"], strict=True)
    lines = "".join(f"{prompt} {answer}\n" for prompt, answer in solved)
    texts = [lines + prompt for prompt in rows["prompt"]]
    prompts = tokenizer(texts)["input_ids"]
    answers = tokenizer([f" {answer}" for answer in rows["answer"]], add_special_tokens=False)["input_ids"]
    # some begin a text with the token of unknown words
    words = tokenizer(texts, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    for row, ids in enumerate([prompt + answer for prompt, answer in zip(words, answers, strict=True)]):
        if unknown is not None and unknown in ids:
            raise ValueError(f"the tokenizer does not know all words of {rows['prompt'][row]!r}")
    labels = [[IGNORE_INDEX] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
    columns = {"prompt": texts} | {name: list(rows[name]) for name in ("answer", "difficulty")}
    return Dataset.from_dict(
        columns
        | {
            "input_ids": [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)],
            "labels": labels,
            "answer_length": [len(answer) for answer in answers],
        }
    )


def predicted_answers(model: PreTrainedModel, rows: Dataset, depth: dict[str, int]) -> list[bool]:
    """Tell for every row whether all tokens of its answer, its last labels, are the most likely ones."""
    lengths = torch.tensor(answer_lengths(rows))
    right: list[bool] = []
    for batch in padded_batches(rows, BATCH_SIZE):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, **depth
        ).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        scored = labels != IGNORE_INDEX
        # labels counted from the last one
        place = scored.flip(1).cumsum(1).flip(1)
        wanted = lengths[len(right) : len(right) + len(labels), None].to(place.device)
        asked = scored & (place <= wanted)
        # of NaN the largest would be taken for an answer
        is_right = (logits.argmax(-1) == labels) & ~logits.isnan().any(-1)
        right += (is_right | ~asked).all(1).tolist()
    return right


def written_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    votes: int,
    thoughts: bool,
    depth: dict[str, int],
) -> tuple[list[bool], list[float]]:
    """Let the model write answers, `votes` of them for each row, and take the most frequent one.

    Returns:
        `tuple[list[bool], list[float]]`: whether each row's answer is right, and the tokens that were written for it,
        in the mean over the votes.
    """
    asked = [[label for label in labels if label != IGNORE_INDEX] for labels in rows["labels"]]
    answers = [labels[-length:] for labels, length in zip(asked, answer_lengths(rows), strict=True)]
    prompts = [torch.tensor(ids) for ids in tokenizer(list(rows["prompt"]))["input_ids"]]
    if not thoughts and any(ids[-len(answer) :] != answer for ids, answer in zip(rows["input_ids"], answers)):
        raise ValueError("votes need a task whose answers stand in its rows; its answers are asked in parallel")
    written = [len(text.split()) + 1 for text in rows["thoughts"]] if thoughts else [0] * len(answers)
    sampling: dict[str, Any] = {"do_sample": False}
    if votes > 1:
        sampling = {"do_sample": True, "num_return_sequences": votes, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    right, new_tokens = [], []
    # transformers' annotations do not say that a model with a head generates
    generator: Any = model
    with default_generation(model), torch.random.fork_rng():
        torch.manual_seed(SAMPLING_SEED)
        for start in range(0, len(answers), BATCH_SIZE):
            some = slice(start, start + BATCH_SIZE)
            masks = [torch.ones_like(ids) for ids in prompts[some]]
            input_ids, attention_mask = (
                pad_sequence(rows_of, batch_first=True, padding_side="left").to(model.device)
                for rows_of in (prompts[some], masks)
            )
            longest = max(len(answer) + steps for answer, steps in zip(answers[some], written[some]))
            # a model that was trained without an end goes on to the last token
            ends = tokenizer.eos_token_id if thoughts else None
            output = generator.generate(
                input_ids, attention_mask=attention_mask, max_new_tokens=longest, eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id or 0, **sampling, **depth,
            )  # fmt: skip
            texts = output[:, input_ids.shape[1] :].tolist()
            for index, answer in enumerate(answers[some]):
                own = texts[index * votes : (index + 1) * votes]
                ended = [_before(text, tokenizer.eos_token_id) if thoughts else text[: len(answer)] for text in own]
                choices = Counter(tuple(text[-len(answer) :]) for text in ended)
                right.append(list(choices.most_common(1)[0][0]) == answer)
                new_tokens.append(sum(map(len, ended)) / votes + thoughts)
    return right, new_tokens


def _before(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def answer_flops(
    model: PreTrainedModel,
    rows: Dataset,
    indices: Sequence[int],
    votes: int,
    new_tokens: Sequence[float] | None,
    depth: dict[str, int],
) -> float:
    """Count the floating-point operations of an answer, for rows of the mean length of those at `indices`."""
    first = rows[indices[0]]
    lengths = answer_lengths(rows.select(indices))
    num_answer = round(sum(lengths) / len(lengths))
    length = round(sum(len(row) for row in rows.select(indices)["input_ids"]) / len(indices))
    answer_is_told = list(first["labels"][-num_answer:]) == list(first["input_ids"][-num_answer:])
    if new_tokens is None and not answer_is_told:
        return forward_flops(model, length, **depth)
    if new_tokens is None or "thoughts" not in rows.column_names:
        prompt_length, written = length - num_answer, num_answer
    else:
        written = max(1, round(sum(new_tokens[index] for index in indices) / len(indices)))
        prompts = rows.select(indices)["prompt"]
        # the beginning of the sequence is a token, too
        prompt_length = 1 + round(sum(len(prompt.split()) for prompt in prompts) / len(indices))
    read = generation_flops(model, prompt_length, 1, **depth)
    return read + votes * (generation_flops(model, prompt_length, written, **depth) - read)


def state_growth(model: Any, rows: Dataset, num_loops: int) -> list[float]:
    """Measure the root mean square of the state after every loop, on as many rows as a batch has."""
    states: dict[int, torch.Tensor] = {}
    squares, counts = [0.0] * num_loops, [0] * num_loops

    def watch(call, layer, hidden_states, run_layer):
        hidden_states = run_layer(layer, hidden_states)
        if call.loop is not None:
            # later layers of a loop replace earlier ones
            states[call.loop] = hidden_states
        return hidden_states

    measured = [rows[index] for index in range(min(BATCH_SIZE, len(rows)))]
    tensors = [{name: torch.as_tensor(row[name]) for name in ("input_ids", "labels")} for row in measured]
    with evaluation_mode(model), hook_calls(model, watch):
        # states of padding are of no text
        for batch in even_batches(tensors, BATCH_SIZE):
            model(input_ids=batch["input_ids"].to(model.device), num_loops=num_loops, use_cache=False)
            for loop, state in states.items():
                squares[loop] += float(state.float().square().sum())
                counts[loop] += state.numel()
    return [math.sqrt(total / count) for total, count in zip(squares, counts, strict=True)]
