from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hf_loop.tasks import word_tokenizer


WORDS = ["ball:1", "1<->2", "é", "a.b"]


def test_one_token_per_word_after_bos():
    tokenizer = word_tokenizer(WORDS)
    assert tokenizer("1<->2 ball:1")["input_ids"] == [1, 5, 4]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer("nothing known")["input_ids"] == [1, tokenizer.unk_token_id, tokenizer.unk_token_id]
    assert len(tokenizer) == 4 + len(WORDS)


def test_batches_pad_on_the_left_with_the_inputs_that_generate_takes():
    batch = word_tokenizer(WORDS)(["é", "é a.b é"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"] == [[0, 0, 1, 6], [1, 6, 7, 6]]
    assert batch["attention_mask"] == [[0, 0, 1, 1], [1, 1, 1, 1]]


def test_auto_tokenizer_reads_what_was_saved(tmp_path):
    tokenizer = word_tokenizer(WORDS)
    tokenizer.save_pretrained(tmp_path)
    reloaded: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert reloaded.get_vocab() == tokenizer.get_vocab()
    assert reloaded(["é", "é a.b"], padding=True) == tokenizer(["é", "é a.b"], padding=True)
    assert reloaded.special_tokens_map == tokenizer.special_tokens_map


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=20))
def test_decoding_gives_the_text_back(words):
    tokenizer = word_tokenizer(WORDS)
    text = " ".join(words)
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("words", [["a", "a"], [""], ["two words"], ["tab\t"], ["<pad>"]])
def test_words_that_cannot_be_tokens_are_refused(words):
    with pytest.raises(ValueError, match="words must be"):
        word_tokenizer(words)
