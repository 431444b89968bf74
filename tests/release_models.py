"""A tiny model of each family as a folder with its code, and what it generated where it was written.

    python -m tests.release_models write FOLDER    # under one release of transformers
    python -m tests.release_models read FOLDER     # under another one, without hf_loop: its code is in the folder

`read` prints a line for every folder and ends with code 1 where one answers otherwise than it did when it was written.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3NextConfig, set_seed

from .hub_processes import BLOCK_HF_LOOP


ANSWER = "answer.json"
# left padding of one sequence, and a length that ends in no block and no window
INPUT_IDS = [[1, 5, 6, 7, 9, 3, 11, 4, 15, 8, 6], [0, 0, 0, 1, 8, 4, 14, 5, 5, 7, 10]]
COMMON = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_models() -> dict[str, Any]:
    """A model of every family, and of every kind of state that it may carry."""
    import hf_loop

    def llama() -> PreTrainedConfig:
        return LlamaConfig(**COMMON)

    hybrid = Qwen3NextConfig(
        **COMMON,
        layer_types=["linear_attention", "full_attention"] * 2,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        mlp_only_layers=[0, 1, 2, 3],
    )
    looped = {"num_prelude_layers": 1, "num_coda_layers": 1, "num_loops": 3}
    configs = {
        "looped": hf_loop.LoopedConfig(backbone_config=llama(), injection="concat", **looped),
        "looped_lora": hf_loop.LoopedConfig(backbone_config=llama(), loop_lora_rank=2, **looped),
        "looped_hybrid": hf_loop.LoopedConfig(backbone_config=hybrid, num_loops=2),
        "feedback": hf_loop.FeedbackConfig(
            backbone_config=llama(), block_size=4, num_memory_segments=1, feedback_length=2
        ),
        "sleep": hf_loop.SleepConfig(backbone_config=llama(), sleep_window=4, num_sleep_passes=2),
        "sleep_hybrid": hf_loop.SleepConfig(backbone_config=hybrid, sleep_window=4, num_sleep_passes=2),
        "hierarchical": hf_loop.HierarchicalConfig(backbone_config=llama(), num_loops=2),
    }
    set_seed(0)
    return {name: AutoModelForCausalLM.from_config(config).eval() for name, config in configs.items()}


@torch.no_grad()
def answer(model: Any) -> dict[str, Any]:
    """What a model generates, with a cache and without one, and its logits."""
    input_ids = torch.tensor(INPUT_IDS)
    inputs = {"input_ids": input_ids, "attention_mask": (input_ids != 0).long()}
    generated = {
        use_cache: model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=-1, use_cache=use_cache)
        for use_cache in (True, False)
    }
    if not torch.equal(generated[True], generated[False]):
        raise SystemExit(f"{type(model).__name__} generates other tokens with a cache than without one")
    return {"tokens": generated[True].tolist(), "logits": model(**inputs).logits.tolist()}


def write(folder: Path) -> None:
    """Save every model with its code and its answer."""
    for name, model in make_models().items():
        model.save_pretrained(folder / name)
        (folder / name / ANSWER).write_text(json.dumps(answer(model)))
        print(f"{name}: written under transformers {transformers.__version__}")


def read(folder: Path) -> bool:
    """Compare every model's answer with what it was where it was written; whether all are the same."""
    exec(BLOCK_HF_LOOP, {})
    all_same = True
    for path in sorted(folder.iterdir()):
        expected = json.loads((path / ANSWER).read_text())
        model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).eval()
        got = answer(model)
        difference = (torch.tensor(got["logits"]) - torch.tensor(expected["logits"])).abs().max().item()
        same = got["tokens"] == expected["tokens"] and difference < 1e-4
        all_same = all_same and same
        result = "same tokens" if same else "OTHER TOKENS OR LOGITS"
        print(
            f"{path.name}: {result} under transformers {transformers.__version__}, logits differ by {difference:.1e}"
        )
    return all_same


if __name__ == "__main__":
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "write":
        write(folder)
    elif not read(folder):
        raise SystemExit(1)
