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


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool = False, is_start: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode a prompt.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer.
        prompt (`str`): the text.
        chat (`bool`, *optional*, defaults to `False`): whether to send it through the chat template.
        is_start (`bool`, *optional*, defaults to `True`): whether the text begins here, so that it gets a start token
            where the tokenizer has one.

    Returns:
        `tuple[torch.LongTensor, torch.LongTensor]`: its tokens and their attention mask, both `[1, T]`.

    Raises:
        ValueError: if the prompt is empty, or the tokenizer's files are damaged.
    """
    with fault_named(f"the tokenizer of {tokenizer.name_or_path}"):
        if chat:
            messages = [{"role": "user", "content": prompt}]
            prompt = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        # a chat template writes the special tokens itself
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=is_start and not chat)
        input_ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]
    if input_ids.shape[1] == 0:
        raise ValueError("The prompt is empty")
    return input_ids.long(), attention_mask


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
