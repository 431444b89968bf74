"""A text longer than `max_position_embeddings` is an error where positions are in a table, else one warning."""

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig

from hf_loop import FeedbackConfig, FeedbackForCausalLM, LoopedConfig, LoopedForCausalLM, SleepConfig, SleepForCausalLM
from hf_loop.evaluation import scan_layer_ranges
from hf_loop.models.backbone_specs import SUPPORTED_BACKBONES

from .composed_variants import make_composed
from .hierarchical_variants import tiny_hierarchical
from .looped_variants import tiny_looped
from .model_tester import random_ids
from .puzzle_variants import puzzles, tiny_puzzle_model
from .tiny_backbones import tiny_backbone


LIMIT = 16
TABLES = [name for name, spec in SUPPORTED_BACKBONES.items() if spec.has_position_table]


def short_backbone(model_type: str):
    config = tiny_backbone(model_type)
    config.max_position_embeddings = LIMIT
    return config


def short_looped(**fields) -> LoopedForCausalLM:
    return LoopedForCausalLM(LoopedConfig(backbone_config=short_backbone("llama"), num_loops=2, **fields)).eval()


@pytest.fixture
def warnings(caplog):
    """The texts of the warnings about length."""
    logging.getLogger("transformers").propagate = True
    yield lambda: [record.getMessage() for record in caplog.records if "was made for" in record.getMessage()]
    logging.getLogger("transformers").propagate = False


def test_tables_are_those_of_the_decoders_that_fail_beyond_them():
    assert TABLES == ["biogpt", "codegen", "ctrl", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "opt"]


@pytest.mark.parametrize("model_type", TABLES)
@torch.no_grad()
def test_a_position_outside_of_the_table_is_an_error(model_type):
    model = LoopedForCausalLM(LoopedConfig(backbone_config=short_backbone(model_type), num_loops=1)).eval()
    model(random_ids(1, LIMIT))
    with pytest.raises(ValueError, match=f"{LIMIT + 1} tokens, more than the {LIMIT} positions "):
        model(random_ids(1, LIMIT + 1))
    with pytest.raises(ValueError, match=f"the {LIMIT} positions"):
        model.generate(random_ids(1, LIMIT - 2), max_new_tokens=5, do_sample=False, eos_token_id=None)
    if model_type == "gpt_neo":
        return  # its layers have a mask of this size, too
    # padding takes no position
    mask = (torch.arange(LIMIT + 4) >= 6).long()[None]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model(random_ids(1, LIMIT + 4), attention_mask=mask, position_ids=positions)


@torch.no_grad()
def test_a_table_bounds_models_with_a_memory_too():
    feedback = FeedbackForCausalLM(FeedbackConfig(backbone_config=short_backbone("gpt2"), block_size=4)).eval()
    with pytest.raises(ValueError, match=f"{LIMIT + 1} tokens, more than the {LIMIT} positions"):
        feedback(random_ids(1, LIMIT + 1))
    sleep = SleepForCausalLM(SleepConfig(backbone_config=short_backbone("gptj"), sleep_window=4)).eval()
    sleep(random_ids(1, LIMIT + 4))
    longer = SleepForCausalLM(SleepConfig(backbone_config=short_backbone("gptj"), sleep_window=LIMIT + 4)).eval()
    with pytest.raises(ValueError, match=f"{LIMIT + 1} tokens, more than the {LIMIT} positions"):
        longer(random_ids(1, LIMIT + 1))


@pytest.mark.parametrize("make", [tiny_looped, tiny_hierarchical])
@torch.no_grad()
def test_beyond_rotary_positions_every_model_warns_once(make, warnings):
    for _ in range(2):
        model = make()
        model.config.max_position_embeddings = LIMIT
        model(random_ids(2, LIMIT))
        for length in (LIMIT + 3, LIMIT + 4):
            model(random_ids(2, length))
    assert [f"{LIMIT + 3} tokens" in text and f"made for {LIMIT} " in text for text in warnings()] == [True, True]


@torch.no_grad()
def test_generation_warns_when_it_passes_the_limit(warnings):
    options = {"do_sample": False, "eos_token_id": None}
    short_looped().generate(random_ids(1, 10), max_new_tokens=6, **options)
    assert warnings() == []
    short_looped().generate(random_ids(1, 10), max_new_tokens=10, **options)
    assert len(warnings()) == 1
    assert f"{LIMIT + 1} tokens" in warnings()[0]


def test_windows_of_a_scan_are_checked(warnings):
    for model_type in ("gpt2", "llama"):
        model = AutoModelForCausalLM.from_config(short_backbone(model_type)).eval()
        if model_type == "gpt2":
            with pytest.raises(ValueError, match=f"{LIMIT + 4} tokens, more than the {LIMIT} positions"):
                scan_layer_ranges(model, random_ids(1, 2 * LIMIT + 8), [(1, 1)], window=LIMIT + 4)
        else:
            scan_layer_ranges(model, random_ids(1, 2 * LIMIT + 8), [(1, 1)], window=LIMIT + 4)
    assert len(warnings()) == 1


@torch.no_grad()
def test_padding_and_packed_documents_do_not_count(warnings):
    model = short_looped()
    ids = random_ids(1, 2 * LIMIT)
    model(ids, position_ids=torch.arange(2 * LIMIT)[None] % LIMIT)
    model(ids, position_ids=(torch.arange(2 * LIMIT)[None] - LIMIT).clamp(min=0))
    assert warnings() == []


@pytest.mark.parametrize("outer", ["feedback", "sleep"])
@torch.no_grad()
def test_models_with_a_memory_read_any_length(outer, warnings):
    model = make_composed(outer, "looped")
    model.config.max_position_embeddings = LIMIT
    model(random_ids(1, 3 * LIMIT))
    assert warnings() == []


@torch.no_grad()
def test_puzzles_of_more_cells_than_positions(warnings):
    model = tiny_puzzle_model("trm")
    model.config.max_position_embeddings = LIMIT
    model.solve(puzzles(num_cells=LIMIT), num_segments=2)
    assert len(warnings()) == 1


@torch.no_grad()
def test_a_decoder_without_a_limit_has_none(warnings):
    config = BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4)
    LoopedForCausalLM(LoopedConfig(backbone_config=config, num_loops=1)).eval()(random_ids(1, 3000))
    assert warnings() == []
