"""A word-level tokenizer for tasks with a closed vocabulary."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast


BOS_TOKEN, UNK_TOKEN = "<bos>", "<unk>"
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": BOS_TOKEN, "eos_token": "<eos>", "unk_token": UNK_TOKEN}
# of a tokenizer that `word_tokenizer` built
BOS_ID = list(SPECIAL_TOKENS.values()).index(BOS_TOKEN)
# the label of a token that is not scored, as everywhere in transformers
IGNORE_INDEX = -100


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer in which every word is one token.

    Text is split at white space, and `<bos>` is put in front. Padding goes to the left, where `generate` wants it.
    The ids 0 to 3 are `<pad>`, `<bos>`, `<eos>` and `<unk>`; the words follow in the order given.

    Args:
        words (`Sequence[str]`): the vocabulary; distinct, not empty, without white space.

    Returns:
        `PreTrainedTokenizerFast`: a tokenizer that `save_pretrained` writes and `AutoTokenizer.from_pretrained` loads.

    Raises:
        ValueError: if a word repeats, is empty, contains white space or is one of the special tokens.
    """
    seen = set(SPECIAL_TOKENS.values())
    for word in words:
        if not word or word.split() != [word]:
            raise ValueError(f"words must be non-empty and without white space, got {word!r}")
        if word in seen:
            raise ValueError(f"words must be distinct and differ from the special tokens, got {word!r} twice")
        seen.add(word)
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS.values(), *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNK_TOKEN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS_TOKEN} $A", special_tokens=[(BOS_TOKEN, vocabulary[BOS_TOKEN])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        # without this the tokenizer also returns token_type_ids, which generate refuses
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL_TOKENS,
    )
