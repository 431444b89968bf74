"""A GGUF file of a tiny Llama with a tokenizer of bytes, as llama.cpp's converter writes one."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, set_seed


# after the bytes: the tokens that begin and end a text, and one that every GPT-2 tokenizer has
SPECIAL_TOKENS = ["<s>", "</s>", "<|endoftext|>"]
NUM_LAYERS = 4


def tiny_llama() -> LlamaForCausalLM:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=256 + len(SPECIAL_TOKENS) + 1,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    return LlamaForCausalLM(config)


def byte_vocabulary() -> list[str]:
    """The tokens of the files, in order."""
    return [*sorted(ByteLevel.alphabet()), *SPECIAL_TOKENS, "ab"]


def write_gguf(path: Path, quantization: str | None = None, lost: str | None = None) -> LlamaForCausalLM:
    """Write the file and return the model, whose matrices are stored in the type `quantization`, without `lost`."""
    model = tiny_llama()
    write_llama(path, model.config, model.state_dict(), quantization, lost)
    return model


def write_llama(
    path: Path, config: Any, tensors: dict[str, Tensor], quantization: str | None = None, lost: str | None = None
) -> None:
    """Write a Llama's configuration and its tensors as they are named in a checkpoint."""
    gguf: Any = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = byte_vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in tensors.items():
        stored, values = names.get_name(name, try_suffixes=(".weight",)), tensor.numpy()
        if stored is None:
            raise ValueError(f"llama.cpp knows no tensor {name} of a Llama of {config.num_hidden_layers} layers")
        if stored == lost:
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp keeps the two halves of a rotary pair beside each other
            num_heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = values.reshape(num_heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if quantization is None or values.ndim == 1:
            writer.add_tensor(stored, values)
        else:
            kind = gguf.GGMLQuantizationType[quantization]
            writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
