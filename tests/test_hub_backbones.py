"""A backbone of every kind, pretrained and looped, pushed to the Hub and read where hf_loop is not installed.

One of them is in no table, so that the code that travels checks it where it is read.
"""

import json
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING

from hf_loop.models.backbone_specs import LOOPED_BACKBONES

from .hub_processes import BLOCK_HF_LOOP, run_python
from .hub_server import HubServer
from .models.tiny_backbones import KINDS


ROOT = Path(__file__).parent.parent
MODEL_TYPES = [*KINDS, "internlm3"]
# not retrofitted, because they loop by themselves
LOOPED_TYPES = [model_type for model_type in LOOPED_BACKBONES if model_type in CONFIG_MAPPING]

ANSWER = """
import json, torch

torch.manual_seed(3)
input_ids = torch.randint(3, 97, (2, 7))

def answer(model):
    with torch.no_grad():
        return [model(input_ids, num_loops=count).logits[:, -1].tolist() for count in (1, 3)]
"""


def push_and_read(writer: Path, reader: Path) -> tuple[dict, dict]:
    """What every model answers where it was made, and where it was read."""
    with HubServer() as hub:
        made = run_python(
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            + ANSWER
            + f"MODEL_TYPES, LOOPED_TYPES = {MODEL_TYPES}, {LOOPED_TYPES}\n"
            + """
from hf_loop import retrofit
from hf_loop.models.backbone import is_tested
from tests.models.looped_variants import OWN_LOOPS, tiny_looped
from tests.retrofitting.tiny_models import tiny_decoder

answers = {}
assert not is_tested(tiny_decoder("internlm3").config)
for model_type in MODEL_TYPES:
    model = retrofit(tiny_decoder(model_type), num_prelude_layers=1, num_coda_layers=1, num_loops=2)
    model.push_to_hub(model_type)
    answers[model_type] = answer(model)
for model_type in LOOPED_TYPES:
    model = tiny_looped(**OWN_LOOPS[model_type])
    model.push_to_hub(model_type)
    answers[model_type] = answer(model)
print(json.dumps(answers))
""",
            hub,
            writer,
        )
        read = run_python(
            BLOCK_HF_LOOP
            + ANSWER
            + f"""
from transformers import AutoModelForCausalLM

answers = {{}}
for model_type in {MODEL_TYPES + LOOPED_TYPES}:
    model = AutoModelForCausalLM.from_pretrained(f"me/{{model_type}}", trust_remote_code=True)
    answers[model_type] = answer(model)
print(json.dumps(answers))
""",
            hub,
            reader,
        )
    return json.loads(made.splitlines()[-1]), json.loads(read.splitlines()[-1])


# one test for all of them: what takes time is starting the two processes
def test_a_pushed_model_is_the_same_where_hf_loop_is_not_installed(tmp_path_factory, subtests):
    made, read = push_and_read(tmp_path_factory.mktemp("writer"), tmp_path_factory.mktemp("reader"))
    for model_type in MODEL_TYPES + LOOPED_TYPES:
        with subtests.test(model_type):
            torch.testing.assert_close(
                torch.tensor(read[model_type]), torch.tensor(made[model_type]), atol=1e-5, rtol=1e-5
            )
