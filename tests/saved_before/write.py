"""Write the folders of this one: a tiny model of every family, as the version at commit 15d2435 saved them.

    PYTHONPATH=<a checkout of that commit> python tests/saved_before/write.py tests/saved_before

They are not to be written again: what they are kept for is that later versions load them.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, Qwen3NextConfig, set_seed

import hf_loop


# left padding of one sequence, and a length that ends in no block and no window
INPUT_IDS = torch.tensor([[1, 5, 6, 7, 9, 3, 11, 4, 15, 8, 6], [0, 0, 0, 1, 8, 4, 14, 5, 5, 7, 10]])
NEXT_IDS = torch.tensor([[3, 9, 4, 4, 12, 6], [7, 1, 13, 2, 8, 5]])
COMMON = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama(**fields: Any) -> LlamaConfig:
    return LlamaConfig(**{**COMMON, **fields})


def hybrid() -> Qwen3NextConfig:
    return Qwen3NextConfig(
        **{**COMMON, "num_hidden_layers": 2},
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=1,
        linear_num_value_heads=1,
        linear_key_head_dim=4,
        linear_value_head_dim=4,
        mlp_only_layers=[0, 1],
    )


def make_models() -> dict[str, Any]:
    looped = {"num_prelude_layers": 1, "num_coda_layers": 1, "num_loops": 3}
    puzzle = hf_loop.HierarchicalConfig.from_preset(
        "hrm",
        vocab_size=6,
        hidden_size=8,
        intermediate_size=8,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=32,
        num_puzzles=3,
    )
    makers = {
        "looped": (hf_loop.LoopedForCausalLM, looped | {"injection": "concat"}),
        "looped_lora": (hf_loop.LoopedForCausalLM, looped | {"loop_lora_rank": 2, "loop_lora_vectors": True}),
        "feedback": (hf_loop.FeedbackForCausalLM, {"block_size": 4, "num_memory_segments": 1, "feedback_length": 2}),
        "sleep": (hf_loop.SleepForCausalLM, {"sleep_window": 4, "num_sleep_passes": 2, "fast_weight_layers": [0, 2]}),
        "sleep_hybrid": (
            hf_loop.SleepForCausalLM,
            {"backbone_config": hybrid(), "sleep_window": 4, "num_sleep_passes": 2},
        ),
        "hierarchical": (
            hf_loop.HierarchicalForCausalLM,
            {"backbone_config": llama(num_hidden_layers=2), "num_loops": 2, "injection": "add"},
        ),
        "classifier": (hf_loop.LoopedForSequenceClassification, {"num_loops": 2, "num_labels": 3}),
    }
    models = {"puzzle": hf_loop.HierarchicalForPuzzle(puzzle)}
    for name, (model_class, fields) in makers.items():
        models[name] = model_class(model_class.config_class(**{"backbone_config": llama(), **fields}))
    for model in models.values():
        for parameter_name, parameter in model.named_parameters():
            # those that start at zero are drawn too, so that all matter
            if any(part in parameter_name for part in ("loop_lora", "o_proj", "halt_head", "puzzle_embeddings")):
                torch.nn.init.normal_(parameter, std=0.3)
        model.eval()
    return models


@torch.no_grad()
def write(model: Any, name: str, folder: Path) -> None:
    model.save_pretrained(folder)
    # as its readers have it: kernels may add in another order where weights lie elsewhere in memory
    model = type(model).from_pretrained(folder).eval()
    if name == "puzzle":
        cells = INPUT_IDS[:, :9] % 6
        answer = model(input_ids=cells, puzzle_ids=torch.tensor([1, 2]))
        tensors = {"input_ids": cells, "logits": answer.logits, "halt_logits": answer.halt_logits}
    else:
        inputs = {"input_ids": INPUT_IDS, "attention_mask": (INPUT_IDS != 0).long()}
        tensors = inputs | {"logits": model(**inputs).logits}
    if name in ("feedback", "sleep", "sleep_hybrid"):
        cache = model(**inputs, use_cache=True).past_key_values
        model.save_memory(cache, folder / "memory.safetensors")
        memory = model.load_memory(folder / "memory.safetensors")
        tensors["next_ids"] = NEXT_IDS
        tensors["next_logits"] = model(NEXT_IDS, past_key_values=memory).logits
    if name == "looped_lora":
        hf_loop.save_loop_adapter(model, folder.with_name("loop_adapter"))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "expected.safetensors")
    # the code that travelled with it needs nothing of later versions, and is not kept
    for file in folder.glob("*.py"):
        file.unlink()


if __name__ == "__main__":
    set_seed(0)
    for name, model in make_models().items():
        write(model, name, Path(sys.argv[1]) / name)
