"""Adapters and classification heads on the Hub: opened in a process without hf_loop, by code that came along."""

import json

import torch

from .hub_processes import BLOCK_HF_LOOP, run_python
from .hub_server import HubServer


ANSWER = """
import json, torch
from peft import AutoPeftModel, AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

FAMILIES = ["looped", "feedback", "sleep", "hierarchical"]
HEADS = [AutoModelForSequenceClassification, AutoModelForTokenClassification]
ids = torch.tensor([[1, 5, 6, 7, 9, 3, 11, 4, 15, 8], [1, 9, 8, 4, 14, 5, 5, 7, 10, 3]])

@torch.no_grad()
def answer(model):
    return model.eval()(ids).logits.tolist()
"""

WRITE = """
import hf_loop
from transformers import LlamaConfig, set_seed

set_seed(0)
llama = dict(vocab_size=20, hidden_size=16, intermediate_size=32, num_attention_heads=4, num_hidden_layers=2,
             pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3)
fields = {"looped": {}, "feedback": {"block_size": 4, "feedback_length": 2}, "sleep": {"sleep_window": 4},
          "hierarchical": {}}
answers = {}
for family in FAMILIES:
    name = family.capitalize()
    config = getattr(hf_loop, f"{name}Config")(backbone_config=LlamaConfig(**llama), num_labels=3, **fields[family])
    model = getattr(hf_loop, f"{name}ForCausalLM")(config)
    model.push_to_hub(family)
    assert model.name_or_path == f"me/{family}", model.name_or_path
    for task_type in (None, "CAUSAL_LM"):
        adapted = get_peft_model(model, LoraConfig(task_type=task_type, init_lora_weights=False))
        answers[f"{family}-{task_type}"] = answer(adapted)
        adapted.push_to_hub(f"{family}-{task_type}")
        model = adapted.unload()
    for auto_class in HEADS:
        model = auto_class.from_config(config)
        answers[f"{family}-{auto_class.__name__}"] = answer(model)
        model.push_to_hub(f"{family}-{auto_class.__name__}")
print(json.dumps(answers))
"""

READ = """
answers = {}
for family in FAMILIES:
    for opens, task_type in ((AutoPeftModel, None), (AutoPeftModelForCausalLM, "CAUSAL_LM")):
        name = f"{family}-{task_type}"
        adapted = opens.from_pretrained(f"me/{name}", trust_remote_code=True)
        model = adapted.get_base_model()
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        answers[name] = answer(adapted)
    # PEFT finds the targets by code that came along, too
    assert get_peft_model(adapted.unload(), LoraConfig()).targeted_module_names
    for auto_class in HEADS:
        name = f"{family}-{auto_class.__name__}"
        answers[name] = answer(auto_class.from_pretrained(f"me/{name}", trust_remote_code=True))
print(json.dumps(answers))
"""


def test_adapters_and_heads_open_where_hf_loop_is_not_installed(tmp_path):
    with HubServer() as hub:
        written = json.loads(run_python(ANSWER + WRITE, hub, tmp_path).splitlines()[-1])
        read = json.loads(run_python(BLOCK_HF_LOOP + ANSWER + READ, hub, tmp_path).splitlines()[-1])
    assert read.keys() == written.keys()
    for name, logits in written.items():
        torch.testing.assert_close(torch.tensor(read[name]), torch.tensor(logits))
