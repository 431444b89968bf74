"""Models whose weights accelerate brings to the device layer by layer: they compute the same, and are written whole or
not at all."""

import copy

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from transformers import AutoModelForCausalLM

from hf_loop import add_loop_lora, load_loop_adapter, retrofit, save_loop_adapter, unroll
from hf_loop.evaluation.scan import model_settings
from hf_loop.models.transformers_seams import cache_of
from hf_loop.retrofitting.converters.hrm_text import to_hrm_text

from .generation_variants import FAMILIES, GREEDY, LOOPED, MEMORY, PROMPT, depths
from .hierarchical_variants import HRM_TEXT_SCHEDULE, tiny_hierarchical
from .puzzle_variants import puzzles, tiny_puzzle_model
from .tiny_backbones import tiny_backbone


CPU = torch.device("cpu")


def offload(model):
    return cpu_offload(model, execution_device=CPU, offload_buffers=True)


def dispatch(model, folder):
    """As `device_map="auto"` does on a small device: the first weight stays, all others are on disk."""
    names = [name for name, _ in model.named_modules() if name.rpartition(".")[2].isdigit()]
    device_map = {}
    for name in [*dict(model.named_parameters()), *dict(model.named_buffers())]:
        owner = next((layer for layer in names if name.startswith(f"{layer}.")), name)
        device_map[owner] = "disk" if device_map else "cpu"
    return dispatch_model(model, device_map=device_map, main_device=CPU, offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_offloaded_models_generate_the_same(name, tmp_path):
    depth = depths(name)[-1]
    expected = FAMILIES[name]().generate(PROMPT, use_cache=False, **depth, **GREEDY)
    dispatched = dispatch(FAMILIES[name](), tmp_path / "weights")
    for model in (offload(FAMILIES[name]()), dispatched):
        assert sum(parameter.is_meta for parameter in model.parameters()) > 15
        assert torch.equal(model.generate(PROMPT, **depth, **GREEDY), expected)
    # transformers writes what its device map names
    dispatched.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.generate(PROMPT, **depth, **GREEDY), expected)
    with pytest.raises(ValueError, match="`model` has .* weights that are offloaded or were never loaded, such as"):
        offload(loaded).save_pretrained(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("name", ["hrm", "trm", "urm"])
@torch.no_grad()
def test_offloaded_puzzle_models_compute_the_same(name):
    model = tiny_puzzle_model(name)
    expected = model(puzzles())
    outputs = offload(model)(puzzles())
    assert torch.equal(outputs.logits, expected.logits)
    assert torch.equal(model.solve(puzzles()).tokens, tiny_puzzle_model(name).solve(puzzles()).tokens)


@pytest.mark.parametrize("name", MEMORY)
def test_a_memory_of_an_offloaded_model_is_the_models(name, tmp_path):
    model = offload(MEMORY[name]())
    cache = cache_of(model.generate(PROMPT, return_dict_in_generate=True, **GREEDY))
    model.save_memory(cache, tmp_path / "memory.safetensors")
    MEMORY[name]().load_memory(tmp_path / "memory.safetensors")


def test_what_reads_every_weight_refuses_offloaded_ones(tmp_path):
    refused = pytest.raises(ValueError, match="weights that are offloaded or were never loaded")
    looped, with_updates = offload(LOOPED["looped"]()), LOOPED["loop LoRA"]()
    save_loop_adapter(with_updates, tmp_path / "adapter")
    offload(with_updates)
    hierarchical = offload(tiny_hierarchical("hrm_text", **HRM_TEXT_SCHEDULE))
    base = AutoModelForCausalLM.from_config(tiny_backbone("llama"))
    for call in (
        lambda: unroll(with_updates),
        lambda: to_hrm_text(hierarchical),
        lambda: add_loop_lora(looped, rank=2),
        lambda: save_loop_adapter(with_updates, tmp_path / "refused"),
        lambda: load_loop_adapter(with_updates, tmp_path / "adapter"),
        *(lambda family=family: retrofit(offload(copy.deepcopy(base)), family) for family in ("looped", "feedback")),
    ):
        with refused:
            call()
    assert not (tmp_path / "refused").exists()
    with torch.device("meta"):
        never_loaded = AutoModelForCausalLM.from_config(tiny_backbone("llama"))
    with refused:
        retrofit(never_loaded, "sleep")


def test_a_scan_knows_an_offloaded_model_again():
    assert model_settings(offload(LOOPED["looped"]())) == model_settings(LOOPED["looped"]())
