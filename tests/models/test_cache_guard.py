"""A layer that ignores its cache, as one of a future release might, fails loudly in every family."""

import inspect
import json
import os
import subprocess
import sys

import pytest
import torch
import transformers

from ..hub_processes import BLOCK_HF_LOOP
from . import ignoring_layers
from .family_models import CAUSAL, INPUT_IDS
from .ignoring_layers import WAYS


LAYER = 1


def backbone_of(model):
    return model.model.backbone


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", CAUSAL)
def test_a_layer_that_ignores_its_cache_fails(family, way):
    model = CAUSAL[family]()
    expected = model(INPUT_IDS, use_cache=True).logits
    WAYS[way](backbone_of(model).layers[LAYER])
    message = rf"layer {LAYER} of the llama backbone neither read nor wrote slot {LAYER} of the cache \(transformers "
    for call in (model, model.generate):
        with pytest.raises(RuntimeError, match=message + transformers.__version__):
            call(INPUT_IDS, use_cache=True)
    if family in ("looped", "hierarchical"):
        # nothing is carried without a cache
        assert torch.equal(model(INPUT_IDS, use_cache=False).logits, expected)
    else:
        # a memory and fast weights cross the borders of blocks and windows in any case
        with pytest.raises(RuntimeError, match=message):
            model(INPUT_IDS, use_cache=False)


@pytest.mark.parametrize("family", ["feedback", "sleep"])
def test_a_memory_that_is_ignored_fails_in_training_too(family):
    model = CAUSAL[family]().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    WAYS["swallowed"](backbone_of(model).layers[LAYER])
    with pytest.raises(RuntimeError, match="neither read nor wrote slot"):
        model(INPUT_IDS, labels=INPUT_IDS)


@pytest.mark.parametrize("model_type", ["olmo_hybrid", "qwen3_next"])
def test_a_linear_attention_layer_that_ignores_its_cache_fails(model_type):
    model = CAUSAL["looped"](model_type)
    layer_types = model.config.backbone_config.layer_types
    index = layer_types.index("linear_attention")
    WAYS["swallowed"](backbone_of(model).layers[index])
    with pytest.raises(RuntimeError, match=f"layer {index} of the {model_type} backbone neither read nor wrote"):
        model(INPUT_IDS, use_cache=True)


READ = """
import json, torch
from transformers import AutoModelForCausalLM

ids = torch.tensor(%s)

def outcome(call, **kwargs):
    try:
        call(ids, **kwargs)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["none", ""]

answers = {}
for folder in %s:
    answers[folder] = {}
    for way, ignore in WAYS.items():
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        answers[folder]["whole"] = outcome(model.generate, max_new_tokens=2)
        answers[folder]["keyword"] = outcome(model, num_steps=8)
        ignore(model.model.backbone.layers[1])
        answers[folder][way] = outcome(model.generate, max_new_tokens=2)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def remote_answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    for family, make in CAUSAL.items():
        make().save_pretrained(folder / family)
    code = BLOCK_HF_LOOP + inspect.getsource(ignoring_layers) + READ % (INPUT_IDS.tolist(), list(CAUSAL))
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("family", CAUSAL)
def test_a_layer_that_ignores_its_cache_fails_where_hf_loop_is_not_installed(remote_answers, family):
    answers = remote_answers[family]
    assert answers["whole"] == ["none", ""]
    for way in WAYS:
        kind, message = answers[way]
        assert kind == "RuntimeError"
        assert f"layer {LAYER} of the llama backbone neither read nor wrote slot" in message
    kind, message = answers["keyword"]
    assert kind == "TypeError"
    assert "`num_steps` is no keyword of a" in message
