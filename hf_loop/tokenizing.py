"""Loads a tokenizer, says in one line which of its files is damaged, and holds its tokens to the model."""

import os

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from .configurations import CONFIG_FILE, read_config
from .files import fault_named, read_json
from .gguf_files import locate
from .paths import find_model


# one of these is in every folder that holds a tokenizer
TOKENIZER_FILES = ("tokenizer*", "vocab.*", "spiece.model", "sentencepiece*")


def load_tokenizer(name: str | os.PathLike) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint. The code that it brings is not run.

    Args:
        name (`str` or `os.PathLike`): a folder, a repository on the Hub, or a GGUF file.

    Raises:
        ValueError: if there is none, or one of its files is damaged; the message names it.
        OSError: if there is no such folder, repository or file.
    """
    source = locate(name)
    folder = None
    if "gguf_file" not in source:
        folder = find_model(name)
        if folder is not None and not any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
            raise ValueError(f"{name} holds no tokenizer")
        if folder is not None and (folder / CONFIG_FILE).is_file():
            # transformers asks it for the tokenizer's class, and goes on with another one where it is damaged
            read_config(folder)
    try:
        with fault_named(f"the tokenizer of {name}"):
            tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    except ValueError:
        # the message does not say in which file, where one is no JSON at all
        for path in sorted(folder.glob("*token*.json")) if folder is not None else ():
            read_json(path)
        raise
    if tokenizer is None:
        raise ValueError(f"transformers knows no tokenizer for {name}")
    return tokenizer


def check_token_ids(input_ids: torch.Tensor, config: PreTrainedConfig, name: object) -> None:
    """Refuse tokens that the model does not have: its tokenizer is another model's.

    Args:
        input_ids (`torch.Tensor`): ids of tokens.
        config (`PreTrainedConfig`): the configuration of the model.
        name (`object`): what the message calls the model.

    Raises:
        ValueError: if one of them is not in the vocabulary.
    """
    highest = int(input_ids.max()) if input_ids.numel() else 0
    if highest >= config.vocab_size:
        raise ValueError(
            f"the tokenizer of {name} belongs to another model: it gives the token {highest}, and the vocabulary has "
            f"{config.vocab_size} (`vocab_size`)"
        )
