"""A hierarchical model in a process that does not have hf_loop: its code comes with its checkpoint."""

import json

import pytest

from .hub_processes import BLOCK_HF_LOOP, run_python
from .hub_server import HubServer


ANSWER = """
import json, torch

ids = torch.tensor([[1, 5, 6, 7], [1, 9, 8, 4]])

def answer(model):
    types = torch.ones_like(ids) if model.config.prefix_lm else None
    tokens = [model.generate(ids, token_type_ids=types, num_loops=n, max_new_tokens=8, do_sample=False,
                             eos_token_id=-1).tolist() for n in (1, 2, 5)]
    return {"tokens": tokens, "logits": model(ids, num_loops=5).logits.tolist()}

def solve(model):
    tokens = [model.solve(ids, num_segments=n).tokens.tolist() for n in (1, 2, 5)]
    return {"tokens": tokens, "logits": model(ids, num_segments=2).logits.tolist()}
"""

WRITE = """
from datasets import Dataset
from transformers import AutoModelForMaskedLM, HrmTextConfig, LlamaConfig, set_seed
from hf_loop import HierarchicalConfig, HierarchicalPuzzleConfig, HierarchicalForCausalLM, HierarchicalForPuzzle
from hf_loop.evaluation import measure_puzzles, write_puzzle_card

sizes = dict(vocab_size=20, hidden_size=16, intermediate_size=24, num_attention_heads=4, num_hidden_layers=2)
common = dict(vocab_size=20, hidden_size=16, intermediate_size=32, num_attention_heads=4, max_position_embeddings=64,
              pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3, head_dim=4)
configs = {
    "llama": dict(backbone_config=LlamaConfig(num_hidden_layers=4, tie_word_embeddings=True, **common)),
    "hrm_text": dict(backbone_config=HrmTextConfig(num_hidden_layers=2, **common), stack_norm="final",
                     gradient="last_k", backprop_low_cycles=[2]),
}
set_seed(0)
answers = {}
for name, fields in configs.items():
    model = HierarchicalForCausalLM(HierarchicalConfig(num_loops=2, low_cycles=2, **fields)).eval()
    model.push_to_hub(name)
    answers[name] = answer(model)
puzzle_configs = {
    "hrm": HierarchicalPuzzleConfig.from_preset("hrm", **sizes),
    "mixer": HierarchicalPuzzleConfig.from_preset(
        "trm", token_mixer="mlp", mixer_intermediate_size=16, num_puzzle_tokens=2, max_position_embeddings=6, **sizes
    ),
    "urm": HierarchicalPuzzleConfig.from_preset("urm", **sizes),
}
for name, config in puzzle_configs.items():
    model = HierarchicalForPuzzle(config).eval()
    model.push_to_hub(name)
    answers[name] = solve(model)
    if name == "mixer":
        # measured, loaded again, and pushed without its measurements being mentioned
        model.save_pretrained("measured")
        rows = Dataset.from_dict({"input_ids": [[2] * 4] * 3, "labels": [[3] * 4] * 3})
        write_puzzle_card("measured", measure_puzzles(model, rows, segments=[1, 2]), data="three boards")
        AutoModelForMaskedLM.from_pretrained("measured").push_to_hub("measured")
print(json.dumps(answers))
"""

READ = """
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

answers = {}
for name in ("llama", "hrm_text"):
    config = AutoConfig.from_pretrained(f"me/{name}", trust_remote_code=True, num_loops=5)
    assert (config.model_type, config.num_hidden_layers) == ("hierarchical_lm", 30)
    model = AutoModelForCausalLM.from_pretrained(f"me/{name}", trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    answers[name] = answer(model)
    AutoModel.from_pretrained(f"me/{name}", trust_remote_code=True)(ids)
for name in ("hrm", "mixer", "urm"):
    model = AutoModelForMaskedLM.from_pretrained(f"me/{name}", trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    answers[name] = solve(model)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the models answer where they are made, and where only their repositories are."""
    with HubServer() as hub:
        here = run_python(ANSWER + WRITE, hub, tmp_path_factory.mktemp("writer"))
        there = run_python(BLOCK_HF_LOOP + ANSWER + READ, hub, tmp_path_factory.mktemp("reader"))
        files = hub.files("me/measured")
    return json.loads(here.splitlines()[-1]), json.loads(there.splitlines()[-1]), files


@pytest.mark.parametrize("name", ["llama", "hrm_text"])
def test_without_hf_loop_the_model_answers_the_same(answers, name):
    here, there = (answer[name] for answer in answers[:2])
    assert there == here
    # the number of cycles matters for this model, so equality above says something
    assert len({json.dumps(tokens) for tokens in here["tokens"]}) == 3


@pytest.mark.parametrize("name", ["hrm", "mixer", "urm"])
def test_without_hf_loop_the_puzzle_model_answers_the_same(answers, name):
    here, there = (answer[name] for answer in answers[:2])
    assert there == here


def test_a_measured_puzzle_model_pushes_its_card(answers):
    files = answers[2]
    card = files["README.md"].decode()
    assert "On 3 puzzles: three boards" in card
    assert 'AutoModelForMaskedLM.from_pretrained("me/measured", trust_remote_code=True)' in card
    assert {"puzzle_results.json", "figures/accuracy_over_segments.png"} <= set(files)
