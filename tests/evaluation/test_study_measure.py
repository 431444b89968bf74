"""Answers are right if all their tokens are, whether predicted or written, and their compute is counted once."""

import copy

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hf_loop.evaluation import study_measure
from hf_loop.evaluation.flops import forward_flops, generation_flops
from hf_loop.evaluation.study_measure import measure_answers, state_growth
from hf_loop.tasks import addition, shell_game
from hf_loop.tasks.thoughts import with_thoughts

from ..models.looped_variants import tiny_looped
from .fake_model import fake_looped_model


def counting_row(required, start, num_answer, num_told):
    """Counts upwards from `start`; the last labels are the answer, those before it are asked too."""
    tokens = [required, *range(start, start + num_told)]
    labels = [-100, -100, *tokens[2:]]
    answer = " ".join(map(str, tokens[-num_answer:]))
    return {"prompt": "", "answer": answer, "difficulty": required, "input_ids": tokens, "labels": labels}


def test_exact_match_by_difficulty_and_loops(monkeypatch):
    monkeypatch.setattr(study_measure, "answer_flops", lambda *args: 1.0)
    rows = [counting_row(1, 3, 2, 4), counting_row(2, 3, 1, 3), counting_row(2, 5, 3, 4)]
    # wrong before its answer only, which costs nothing
    rows[0]["labels"][2] = 9
    # wrong in the first token of its answer of three
    rows[2]["labels"][2] = 9
    cells = measure_answers(fake_looped_model(), None, Dataset.from_list(rows), [1, 2])
    assert [(cell.loops, cell.difficulty, cell.num_right, cell.num_rows) for cell in cells] == [
        (1, 1, 1, 1), (1, 2, 0, 2), (2, 1, 1, 1), (2, 2, 1, 2)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def sums():
    splits, tokenizer = addition(1, 24, 3)
    return splits["test"], tokenizer


def test_written_answers_are_the_predicted_ones(sums):
    rows, tokenizer = sums
    model = tiny_looped(num_loops=2).eval()
    assert len(tokenizer) <= model.config.vocab_size
    # answers as this model writes them, so that some are right
    ids = [torch.tensor([row["input_ids"][: -len(row["answer"].split())]]) for row in rows]
    lengths = [len(answer.split()) for answer in rows["answer"]]
    written = [
        model.generate(prompt, max_new_tokens=length, do_sample=False, eos_token_id=None, pad_token_id=0)[0].tolist()
        for prompt, length in zip(ids, lengths)
    ]
    names = {value: word for word, value in tokenizer.get_vocab().items()}
    own = []
    for index, (row, tokens, length) in enumerate(zip(rows, written, lengths)):
        tokens = tokens if index % 2 else row["input_ids"]
        if any(token not in names for token in tokens):
            continue
        answer = " ".join(names[token] for token in tokens[-length:])
        labels = [-100] * (len(tokens) - length) + tokens[-length:]
        own.append(row | {"answer": answer, "input_ids": tokens, "labels": labels})
    own = Dataset.from_list(own)
    predicted = study_measure.predicted_answers(model, own, {})
    assert study_measure.written_answers(model, tokenizer, own, 1, False, {})[0] == predicted
    # settings of a checkpoint, which were made for a chat
    model.generation_config.update(repetition_penalty=9.0, num_beams=3, eos_token_id=list(range(len(tokenizer))))
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    tokenizer.pad_token = None
    assert study_measure.written_answers(model, tokenizer, own, 1, False, {})[0] == predicted
    assert sum(predicted) > 2 and model.generation_config.num_beams == 3


def test_answers_are_those_of_the_rows_where_a_space_belongs_to_the_next_token(sums):
    tokens = Tokenizer(BPE({character: index for index, character in enumerate("0123456789+=Ġ?")}, []))
    tokens.pre_tokenizer = ByteLevel(add_prefix_space=False)
    # as some do, it begins a text with the token of unknown words
    tokens.post_processor = TemplateProcessing(single="? $A", special_tokens=[("?", tokens.token_to_id("?"))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="?", bos_token="?")
    rows = study_measure.with_tokenizer(sums[0], tokenizer)
    model = tiny_looped(num_loops=2).eval()
    predicted = study_measure.predicted_answers(model, rows, {})
    assert study_measure.written_answers(model, tokenizer, rows, 1, False, {})[0] == predicted


def test_thoughts_stand_before_the_answer(sums):
    rows, tokenizer = sums
    if "thoughts" not in rows.column_names:
        rows = rows.add_column("thoughts", ["1 2"] * len(rows))
    told = with_thoughts(rows, tokenizer)
    row = told[0]
    texts = [rows[0][name] for name in ("prompt", "thoughts", "answer")]
    assert tokenizer.decode(row["input_ids"]).split() == ["<bos>", *" ".join(texts).split(), "<eos>"]
    num_prompt = 1 + len(texts[0].split())
    assert row["labels"] == [-100] * num_prompt + row["input_ids"][num_prompt:]
    assert row["difficulty"] == rows[0]["difficulty"]


def test_rows_without_thoughts_are_refused():
    splits, tokenizer = shell_game(1, 1, 2)
    with pytest.raises(ValueError, match="rows must have a column 'thoughts'"):
        with_thoughts(splits["test"], tokenizer)


def test_what_an_answer_costs(sums):
    rows, _ = sums
    model = tiny_looped(num_loops=2).eval()
    row = rows.select([0])
    num_answer = len(row["answer"][0].split())
    num_prompt = len(row["input_ids"][0]) - num_answer
    once = study_measure.answer_flops(model, row, [0], 1, None, {"num_loops": 2})
    assert once == generation_flops(model, num_prompt, num_answer, num_loops=2)
    # the prompt is read once for all votes
    read = generation_flops(model, num_prompt, 1, num_loops=2)
    assert study_measure.answer_flops(model, row, [0], 5, [num_answer], {"num_loops": 2}) == read + 5 * (once - read)
    # asked in parallel: one pass
    asked = row.map(lambda row: {"labels": [-100] + [5] * (len(row["labels"]) - 1)})
    length = len(row["input_ids"][0])
    assert study_measure.answer_flops(model, asked, [0], 1, None, {}) == forward_flops(model, length)


def test_the_state_of_a_model_that_doubles_it_doubles():
    model = tiny_looped(num_loops=3, num_prelude_layers=0, num_coda_layers=0).eval()
    for layer in model.model.core_layers():
        layer.forward = lambda hidden_states, **kwargs: hidden_states * 2
    rows = shell_game(1, 4, 3)[0]["test"]
    sizes = state_growth(model, rows, 4)
    num_layers = len(model.model.core_layers())
    assert len(sizes) == 4
    assert all(later == pytest.approx(earlier * 2**num_layers) for earlier, later in zip(sizes, sizes[1:]))


def test_padding_is_not_in_the_growth_of_the_state():
    model = tiny_looped(num_loops=3).eval()
    short, long = (shell_game(1, 3, num_swaps)[0]["test"] for num_swaps in (2, 9))
    together = state_growth(model, concatenate_datasets([short, long]), 3)
    alone = [state_growth(model, rows, 3) for rows in (short, long)]
    shares = [sum(map(len, rows["input_ids"])) for rows in (short, long)]
    for loop in range(3):
        squares = [sizes[loop] ** 2 for sizes in alone]
        expected = sum(share * square for share, square in zip(shares, squares)) / sum(shares)
        assert together[loop] == pytest.approx(expected**0.5, rel=1e-5)


def test_rows_in_the_tokens_of_another_tokenizer(sums):
    rows, tokenizer = sums
    again = study_measure.with_tokenizer(rows, tokenizer)
    assert again["input_ids"] == rows["input_ids"] and again["labels"] == rows["labels"]
    model = tiny_looped(num_loops=2).eval()
    assert study_measure.predicted_answers(model, again, {}) == study_measure.predicted_answers(model, rows, {})
    assert study_measure.answer_lengths(again) == study_measure.answer_lengths(rows)
    solved = study_measure.with_tokenizer(rows, tokenizer, rows.select([1, 0]))
    lines = f"{rows['prompt'][1]} {rows['answer'][1]}\n{rows['prompt'][0]} {rows['answer'][0]}\n"
    assert solved["prompt"][2] == lines + rows["prompt"][2]
    length = len(rows["input_ids"][2])
    # the sequence begins with the token of its beginning, before the examples
    assert solved["input_ids"][2][1 - length :] == rows["input_ids"][2][1:]
    assert solved["labels"][2][1 - length :] == rows["labels"][2][1:]
    assert len(solved["input_ids"][2]) > 2 * length
    assert study_measure.answer_lengths(solved) == study_measure.answer_lengths(rows)
    _, other = shell_game(1, 1, 2)
    with pytest.raises(ValueError, match="the tokenizer does not know all words of"):
        study_measure.with_tokenizer(rows, other)
