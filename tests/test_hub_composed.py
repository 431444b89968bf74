"""Models over time over models over depth in a process without hf_loop: their code comes with their checkpoints."""

import json

import pytest

from .hub_processes import BLOCK_HF_LOOP, run_python
from .hub_server import HubServer


ANSWER = """
import json, torch

NAMES = [f"{outer}-{inner}" for outer in ("feedback", "sleep") for inner in ("looped", "hierarchical")]
ids = torch.tensor([[1, 5, 6, 7, 9, 3, 11, 4, 15, 8], [1, 9, 8, 4, 14, 5, 5, 7, 10, 3]])

def answer(model):
    tokens = model.generate(ids, num_loops=3, max_new_tokens=7, do_sample=False, eos_token_id=-1)
    return {
        "loops": model.config.num_loops,
        "tokens": tokens.tolist(),
        "logits": model(ids).logits.tolist(),
        "more loops": model(ids, num_loops=3).logits.tolist(),
    }
"""

WRITE = """
from transformers import LlamaConfig, set_seed
from hf_loop import (
    FeedbackConfig, FeedbackForCausalLM, HierarchicalConfig, LoopedConfig, SleepConfig, SleepForCausalLM
)

common = dict(vocab_size=20, hidden_size=16, intermediate_size=32, num_attention_heads=4, max_position_embeddings=64,
              pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3, num_hidden_layers=2,
              tie_word_embeddings=True)
inner = {
    "looped": lambda: LoopedConfig(backbone_config=LlamaConfig(**common), num_loops=2),
    "hierarchical": lambda: HierarchicalConfig(backbone_config=LlamaConfig(**common), num_loops=2),
}
set_seed(0)
answers = {}
for name in NAMES:
    backbone_config = inner[name.split("-")[1]]()
    if name.startswith("feedback"):
        model = FeedbackForCausalLM(FeedbackConfig(backbone_config=backbone_config, block_size=4, feedback_length=2))
    else:
        model = SleepForCausalLM(SleepConfig(backbone_config=backbone_config, sleep_window=4))
    model.eval().push_to_hub(name)
    answers[name] = answer(model)
print(json.dumps(answers))
"""

READ = """
from transformers import AutoModel, AutoModelForCausalLM

answers = {}
for name in NAMES:
    model = AutoModelForCausalLM.from_pretrained(f"me/{name}", trust_remote_code=True)
    for part in (model, model.config.backbone_config):
        assert type(part).__module__.startswith("transformers_modules."), type(part).__module__
    answers[name] = answer(model)
    AutoModel.from_pretrained(f"me/{name}", trust_remote_code=True, num_loops=4)(ids)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the models answer where they are made, and where only their repositories are."""
    with HubServer() as hub:
        here = run_python(ANSWER + WRITE, hub, tmp_path_factory.mktemp("writer"))
        there = run_python(BLOCK_HF_LOOP + ANSWER + READ, hub, tmp_path_factory.mktemp("reader"))
    return json.loads(here.splitlines()[-1]), json.loads(there.splitlines()[-1])


@pytest.mark.parametrize("name", ["feedback-looped", "feedback-hierarchical", "sleep-looped", "sleep-hierarchical"])
def test_without_hf_loop_the_model_answers_the_same(answers, name):
    here, there = (answer[name] for answer in answers)
    assert there == here
