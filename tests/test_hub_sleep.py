"""A sleep model in a process that does not have hf_loop: its code comes with its checkpoint, its memory in a file."""

import json

import pytest

from .hub_processes import BLOCK_HF_LOOP, run_python
from .hub_server import HubServer


ANSWER = """
import json, torch

ids = torch.tensor([[1, 5, 6, 7, 9, 3, 11, 4, 15, 8], [1, 9, 8, 4, 14, 5, 5, 7, 10, 3]])

def answer(model):
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=-1)
    tokens = [model.generate(ids, num_sleep_passes=n, **options).tolist() for n in (1, 2, 5)]
    return {"tokens": tokens, "logits": model(ids, num_sleep_passes=5).logits.tolist()}

def go_on(model, memory, tokens):
    options = dict(max_new_tokens=8, do_sample=False, eos_token_id=-1)
    outputs = model.generate(
        tokens, past_key_values=memory, output_logits=True, return_dict_in_generate=True, **options
    )
    return [outputs.sequences[:, -8:].tolist(), [logits.tolist() for logits in outputs.logits]]
"""

WRITE = """
from transformers import LlamaConfig, Qwen3NextConfig, set_seed
from hf_loop import SleepConfig, SleepForCausalLM

common = dict(vocab_size=20, hidden_size=16, intermediate_size=32, num_attention_heads=4, max_position_embeddings=64,
              pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3, head_dim=4, num_hidden_layers=4)
hybrid = dict(num_key_value_heads=2, layer_types=["linear_attention", "full_attention"] * 2, linear_num_key_heads=2,
              linear_num_value_heads=2, linear_key_head_dim=4, linear_value_head_dim=4, num_experts=0,
              mlp_only_layers=[0, 1, 2, 3])
configs = {
    "llama": dict(backbone_config=LlamaConfig(tie_word_embeddings=True, **common), fast_weight_layers=[0, 2]),
    "qwen3_next": dict(backbone_config=Qwen3NextConfig(**common, **hybrid), eviction="sliding"),
}
set_seed(0)
answers = {}
for name, fields in configs.items():
    model = SleepForCausalLM(SleepConfig(sleep_window=4, **fields)).eval()
    for layer in model.model.memory_layers:
        torch.nn.init.normal_(layer.o_proj.weight, std=0.3)
    model.push_to_hub(name)
    answers[name] = answer(model)
    memory = model(ids, use_cache=True).past_key_values
    model.save_memory(memory, f"{MEMORIES}/{name}.safetensors")
    answers[name]["memory"] = go_on(model, memory, torch.cat([ids, ids[:, :3]], dim=1))
print(json.dumps(answers))
"""

READ = """
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

answers = {}
for name in ("llama", "qwen3_next"):
    config = AutoConfig.from_pretrained(f"me/{name}", trust_remote_code=True, num_sleep_passes=5)
    assert (config.model_type, config.num_sleep_passes) == ("sleep_lm", 5)
    model = AutoModelForCausalLM.from_pretrained(f"me/{name}", trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    answers[name] = answer(model)
    answers[name]["memory"] = go_on(model, model.load_memory(f"{MEMORIES}/{name}.safetensors"), ids[:, :3])
    AutoModel.from_pretrained(f"me/{name}", trust_remote_code=True)(ids)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the models answer where they are made, and where only their repositories and memories are."""
    answer = f"MEMORIES = {str(tmp_path_factory.mktemp('memories'))!r}\n" + ANSWER
    with HubServer() as hub:
        here = run_python(answer + WRITE, hub, tmp_path_factory.mktemp("writer"))
        there = run_python(BLOCK_HF_LOOP + answer + READ, hub, tmp_path_factory.mktemp("reader"))
    return json.loads(here.splitlines()[-1]), json.loads(there.splitlines()[-1])


@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
def test_without_hf_loop_the_model_answers_the_same(answers, name):
    here, there = (answer[name] for answer in answers)
    assert there == here
    # the number of passes matters for this model, so equality above says something
    assert len({json.dumps(tokens) for tokens in here["tokens"]}) > 1
