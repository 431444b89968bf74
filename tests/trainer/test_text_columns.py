"""Of questions and answers, conversations, prompts and completions, and instructions the answers alone are learned."""

import json

import pytest
from datasets import Dataset

from hf_loop.models.puzzle_loss import IGNORE_INDEX
from hf_loop.trainer.data import byte_tokenizer, load_training_data
from hf_loop.trainer.packing import pack
from hf_loop.trainer.recipe import DataSection
from hf_loop.trainer.text_columns import choose_reader


CHATML = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# as Qwen3: what the model thought is left out of all turns but the last
FORGETFUL = (
    "{% for turn in messages %}<{{ turn.role }}>{{ '(thought)' if loop.last and turn.role == 'assistant' }}"
    "{{ turn.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# as DeepSeek-R1: the prompt begins a part that the answers of the data do not have
THINKING = CHATML.replace("<assistant>{% endif", "<assistant>(think){% endif")


def talk(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.fixture
def tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    return tokenizer


def learned_and_given(rows, tokenizer, **columns):
    """What is learned of rows, with the rest of the text in brackets."""
    options = {"text_column": "text", "answer_column": None} | columns
    read_row = choose_reader(next(iter(rows)), tokenizer=tokenizer, **options)
    texts, old = "", None
    for segment, is_learned in (part for row in rows for part in read_row(row)):
        if is_learned != old and segment != "":
            texts += "]" if old is False else ""
            texts += "" if is_learned else "["
            old = is_learned
        texts += "$" if segment is None else segment
    return texts


CONVERSATION = "[<user>1+1</><assistant>]2</>[<user>more</><assistant>]3</>"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "whole"}, "whole$"),
        ({"messages": talk("1+1", "2", "more", "3")}, CONVERSATION),
        ({"messages": talk("1+1", "2", "more", "3", "bye")}, CONVERSATION),
        (
            {"messages": [{"role": "system", "content": "s"}, *talk("1+1", "2")]},
            "[<system>s</><user>1+1</><assistant>]2</>",
        ),
        (
            {"conversations": [{"from": "human", "value": "1+1"}, {"from": "gpt", "value": "2"}]},
            "[<user>1+1</><assistant>]2</>",
        ),
        ({"prompt": "1+1=", "completion": "2"}, "[1+1=]2$"),
        ({"prompt": talk("1+1"), "completion": talk("", "2")[1:]}, "[<user>1+1</><assistant>]2</>"),
        # answers in the prompt are given, not learned
        (
            {"prompt": talk("a", "b", "c"), "completion": talk("", "d")[1:]},
            "[<user>a</><assistant>b</><user>c</><assistant>]d</>",
        ),
        ({"instruction": "Add.", "input": "1 1", "output": "2"}, "[<user>Add.\n\n1 1</><assistant>]2</>"),
        ({"instruction": "Add.", "input": "", "output": "2"}, "[<user>Add.</><assistant>]2</>"),
        ({"instruction": "Add.", "output": "2"}, "[<user>Add.</><assistant>]2</>"),
        # a column of text comes first
        ({"text": "whole", "messages": talk("1+1", "2")}, "whole$"),
    ],
)
def test_the_columns_are_found_and_the_answers_learned(row, expected, tokenizer):
    assert learned_and_given([row], tokenizer) == expected


def test_columns_can_be_named(tokenizer):
    row = {"text": "x", "chat": talk("1+1", "2"), "ask": "a", "say": "b"}
    assert learned_and_given([row], tokenizer, text_column="chat") == "[<user>1+1</><assistant>]2</>"
    assert learned_and_given([row], tokenizer, text_column="ask") == "a$"
    assert learned_and_given([row], tokenizer, text_column="ask", answer_column="say") == "[a]b$"


def test_each_answer_is_learned_after_its_own_prompt_where_the_template_changes_earlier_turns(tokenizer):
    tokenizer.chat_template = FORGETFUL
    row = {"messages": talk("1+1", "2", "more", "3")}
    expected = (
        "[<user>1+1</><assistant>](thought)2</>[<user>1+1</><assistant>2</><user>more</><assistant>](thought)3</>"
    )
    assert learned_and_given([row], tokenizer) == expected
    tokenizer.chat_template = THINKING
    assert learned_and_given([row], tokenizer) == CONVERSATION


def test_keys_that_other_turns_have_do_not_reach_the_template(tokenizer):
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.keys() | list }}{% endfor %}"
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": "a", "tool": None}, *talk("", "b")[1:]]}])
    assert "tool" not in learned_and_given(rows, tokenizer)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"body": "a"}, "data.text_column must be one of body, got 'text'"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "data.text_column must be one of prompt, chosen, rejected"),
        ({"text": None}, "the column 'text' must hold text in every row, got None"),
        ({"messages": ["a", "b"]}, "column 'messages' must hold a list of turns with role and content"),
        (
            {"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]},
            "template refuses a row of 'messages'",
        ),
        ({"prompt": 3, "completion": "b"}, "the column 'prompt' must hold text in every row, got 3"),
    ],
)
def test_other_rows_are_refused_by_their_column(row, message, tokenizer):
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content.strip() }}{% endfor %}"
    with pytest.raises(ValueError, match=message):
        learned_and_given([row], tokenizer)


def test_a_tokenizer_needs_a_chat_template_and_an_end_of_text(tokenizer):
    with pytest.raises(
        ValueError, match="'messages' needs a tokenizer with a chat template, which data.tokenizer lacks"
    ):
        learned_and_given([{"messages": talk("a", "b")}], byte_tokenizer())
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="must have an end-of-text token"):
        pack(Dataset.from_dict({"text": ["a"]}), list, tokenizer, 4)


@pytest.mark.parametrize("streaming", [False, True])
def test_packed_conversations_have_labels_on_the_answers_alone(tmp_path, tokenizer, streaming):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [{"messages": talk("a long question of many words", "yes")}] * 4
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = DataSection(
        files=[str(tmp_path / "a.jsonl")], tokenizer=str(tmp_path / "tokenizer"), block_size=8, streaming=streaming
    )
    data = load_training_data(section, default_tokenizer=None, seed=0)
    whole = tokenizer("<user>a long question of many words</><assistant>yes</>" * 4)["input_ids"]
    blocks = [whole[i : i + 8] for i in range(0, len(whole) - 7, 8)]
    taken = [row for row, _ in zip(data.train_dataset, blocks)]
    learned = "".join(tokenizer.decode([label for label in row["labels"] if label != IGNORE_INDEX]) for row in taken)
    assert learned.startswith("yes</>yes</>yes</>")
    for row in taken:
        assert row["input_ids"] in blocks
        assert all(label in (IGNORE_INDEX, token) for label, token in zip(row["labels"], row["input_ids"]))
        # a mean over no label is no number
        assert any(label != IGNORE_INDEX for label in row["labels"][1:])
