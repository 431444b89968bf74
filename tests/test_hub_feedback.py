"""A feedback model in a process without hf_loop: its code comes with its checkpoint, its memory in a file."""

import json

import pytest

from .hub_processes import BLOCK_HF_LOOP, run_python
from .hub_server import HubServer


ANSWER = """
import json, torch

ids = torch.tensor([[1, 5, 6, 7, 9, 3, 11, 4, 15, 8], [1, 9, 8, 4, 14, 5, 5, 7, 10, 3]])

def answer(model):
    tokens = model.generate(ids, max_new_tokens=9, do_sample=False, eos_token_id=-1)
    return {"tokens": tokens.tolist(), "logits": model(ids).logits.tolist()}

def go_on(model, memory):
    outputs = model.generate(
        ids[:, :3], past_key_values=memory, max_new_tokens=8, do_sample=False, eos_token_id=-1, output_logits=True,
        return_dict_in_generate=True,
    )
    return [outputs.sequences.tolist(), [logits.tolist() for logits in outputs.logits]]
"""

WRITE = """
from transformers import LlamaConfig, Qwen3Config, set_seed
from hf_loop import FeedbackConfig, FeedbackForCausalLM

common = dict(vocab_size=20, hidden_size=16, intermediate_size=32, num_attention_heads=4, max_position_embeddings=64,
              pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3, head_dim=4, num_hidden_layers=2)
configs = {
    "llama": dict(backbone_config=LlamaConfig(tie_word_embeddings=True, **common)),
    "qwen3": dict(backbone_config=Qwen3Config(num_key_value_heads=2, **common), feedback_init="prefix"),
}
set_seed(0)
answers = {}
for name, fields in configs.items():
    config = FeedbackConfig(block_size=4, num_memory_segments=1, feedback_length=2, **fields)
    model = FeedbackForCausalLM(config).eval()
    model.push_to_hub(name)
    answers[name] = answer(model)
    path = f"{MEMORIES}/{name}.safetensors"
    model.save_memory(model(ids, use_cache=True).past_key_values, path)
    answers[name]["memory"] = go_on(model, model.load_memory(path))
print(json.dumps(answers))
"""

READ = """
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

answers = {}
for name in ("llama", "qwen3"):
    assert AutoConfig.from_pretrained(f"me/{name}", trust_remote_code=True).model_type == "feedback_lm"
    model = AutoModelForCausalLM.from_pretrained(f"me/{name}", trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    answers[name] = answer(model)
    answers[name]["memory"] = go_on(model, model.load_memory(f"{MEMORIES}/{name}.safetensors"))
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


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_without_hf_loop_the_model_answers_the_same(answers, name):
    here, there = (answer[name] for answer in answers)
    assert there == here
