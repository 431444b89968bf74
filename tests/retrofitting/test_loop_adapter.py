"""Per-loop LoRA added, saved beside a PEFT adapter, loaded, and refused where it does not fit."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from hf_loop import LoopedForSequenceClassification
from hf_loop.retrofitting import add_loop_lora, load_loop_adapter, save_loop_adapter

from ..models.loop_lora_models import tiny_loop_lora, with_random_updates
from ..models.looped_variants import tiny_looped
from ..models.model_tester import random_ids


INPUT_IDS = random_ids(2, 8)
SCHEDULE = {"num_prelude_layers": 1, "num_coda_layers": 1}


@torch.no_grad()
def logits(model, **kwargs):
    return model(input_ids=INPUT_IDS, **kwargs).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_added_updates_change_nothing_and_train(dtype):
    model = tiny_looped(**SCHEDULE).to(dtype)
    expected = logits(model, num_loops=5)
    add_loop_lora(model, rank=2, num_loops=2, beyond="cyclic", target_modules=["q_proj"], vectors=True)
    assert torch.equal(logits(model, num_loops=5), expected)
    assert (model.config.loop_lora_rank, model.config.loop_lora_num_loops) == (2, 2)
    assert {parameter.dtype for parameter in model.model.loop_lora.parameters()} == {dtype}
    assert all(parameter.requires_grad for parameter in model.parameters())
    model(INPUT_IDS, labels=INPUT_IDS).loss.backward()
    assert model.model.loop_lora[0].self_attn_q_proj_A.any()
    assert all(parameter.grad is not None for parameter in model.model.loop_lora.parameters())


def test_a_model_with_added_updates_is_saved_whole(tmp_path):
    model = tiny_looped(**SCHEDULE)
    add_loop_lora(model, rank=2)
    with_random_updates(model).save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path)), logits(model))


def test_heads_and_bare_models_take_them_too():
    config = tiny_looped().config
    config.num_labels = 3
    for model in (LoopedForSequenceClassification(config), tiny_looped().model):
        add_loop_lora(model, rank=2)
        assert model.config.loop_lora_rank == 2
        model(input_ids=INPUT_IDS)


def test_saved_and_loaded(tmp_path):
    bare = tiny_looped(**SCHEDULE)
    model, other = copy.deepcopy(bare), copy.deepcopy(bare)
    form = {"rank": 4, "vectors": True, "target_modules": ["q_proj", "up_proj"]}
    add_loop_lora(model, beyond="cyclic", **form)
    expected = logits(with_random_updates(model), num_loops=5)
    folder = tmp_path / "new" / "folder"
    save_loop_adapter(model, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["loop_lora.safetensors", "loop_lora_config.json"]
    load_loop_adapter(bare, folder)
    assert torch.equal(logits(bare, num_loops=5), expected)
    assert bare.config.loop_lora_beyond == "cyclic"
    # over updates of the same form, whose parameters stay the same objects: an optimizer may hold them
    add_loop_lora(other, beyond="last", **form)
    held = list(other.model.loop_lora.parameters())
    load_loop_adapter(other, folder)
    assert torch.equal(logits(other, num_loops=5), expected)
    assert all(old is new for old, new in zip(held, other.model.loop_lora.parameters(), strict=True))


def test_beside_a_peft_adapter(tmp_path):
    adapted = get_peft_model(tiny_looped(**SCHEDULE), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    add_loop_lora(adapted, rank=4)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert any("loop_lora" in name for name in names) and any("lora_A" in name for name in names)
    for _ in range(3):
        adapted(input_ids=INPUT_IDS, labels=INPUT_IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = logits(adapted)

    adapted.save_pretrained(tmp_path)
    save_loop_adapter(adapted, tmp_path)
    assert not any("loop_lora" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    first, second = (tiny_looped(**SCHEDULE) for _ in range(2))
    loaded = PeftModel.from_pretrained(first, tmp_path).eval()
    assert not torch.allclose(logits(loaded), expected)
    load_loop_adapter(loaded, tmp_path)
    torch.testing.assert_close(logits(loaded), expected)
    # and in the other order
    load_loop_adapter(second, tmp_path)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(second, tmp_path).eval()), expected)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"num_loops": 4}, "has loop_lora_num_loops 3, but the model needs 4"),
        ({"loop_lora_rank": 4, "loop_lora_num_loops": 2}, "has loop_lora_num_loops 3, but the model needs 2"),
        ({"num_coda_layers": 2}, "has num_core_layers 2, but the model needs 1"),
        ({"num_prelude_layers": 2, "num_coda_layers": 0}, "has num_prelude_layers 1, but the model needs 2"),
        ({"loop_lora_rank": 8, "loop_lora_vectors": True}, "has loop_lora_rank 4, but the model needs 8"),
        ({"loop_lora_rank": 4}, "has loop_lora_vectors True, but the model needs False"),
        ({"model_type": "qwen3"}, "lacks tensors: 0.self_attn_k_norm_weight, "),
        (
            {"model_type": "granite", "intermediate": 80},
            r"0.mlp_down_proj_A of shape \[3, 4, 96\], but .* \[3, 4, 80\]",
        ),
    ],
    ids=str,
)
def test_an_adapter_that_does_not_fit_is_refused(model, message, tmp_path):
    save_loop_adapter(tiny_loop_lora(**SCHEDULE), tmp_path)
    schedule = {**SCHEDULE, **model}
    intermediate_size = schedule.pop("intermediate", None)
    model = tiny_looped(**schedule)
    if intermediate_size is not None:
        model.config.backbone_config.intermediate_size = intermediate_size
        model = type(model)(model.config)
    expected = logits(model)
    with pytest.raises(ValueError, match=message) as error:
        load_loop_adapter(model, tmp_path)
    assert "\n" not in str(error.value)
    assert torch.equal(logits(model), expected)


def test_files_that_are_no_adapter_are_refused(tmp_path):
    model = tiny_looped(**SCHEDULE)
    with pytest.raises(ValueError, match="holds no per-loop LoRA: there is no loop_lora_config.json"):
        load_loop_adapter(model, tmp_path)
    save_loop_adapter(tiny_loop_lora(**SCHEDULE), tmp_path)
    weights, config_file = tmp_path / "loop_lora.safetensors", tmp_path / "loop_lora_config.json"
    saved, config = weights.read_bytes(), json.loads(config_file.read_text())
    # copied: the file they are mapped from is overwritten
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    assert config["format_version"] == "1"

    weights.write_bytes(saved[: len(saved) // 2])
    with pytest.raises(ValueError, match="is truncated or damaged"):
        load_loop_adapter(model, tmp_path)
    save_file(tensors, weights, {"format_version": "2"})
    with pytest.raises(ValueError, match="format_version '2'; this version of hf_loop reads '1'"):
        load_loop_adapter(model, tmp_path)
    save_file({**tensors, "0.extra": torch.zeros(1)}, weights, {"format_version": "1"})
    with pytest.raises(ValueError, match="has unknown tensors: 0.extra"):
        load_loop_adapter(model, tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match="there is no loop_lora.safetensors"):
        load_loop_adapter(model, tmp_path)

    for text, message in (
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        (json.dumps({**config, "format_version": "7"}), "format_version '7'"),
        (json.dumps({"format_version": "1"}), "has no `loop_lora_rank`"),
        (json.dumps({**config, "loop_lora_rank": "many"}), "loop_lora_rank"),
        (json.dumps({**config, "loop_lora_beyond": "first"}), "loop_lora_beyond"),
    ):
        config_file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_loop_adapter(model, tmp_path)
    assert model.model.loop_lora is None and model.config.loop_lora_rank == 0


def test_a_failed_write_leaves_the_old_adapter(tmp_path, monkeypatch):
    model = tiny_loop_lora(**SCHEDULE)
    save_loop_adapter(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("hf_loop.retrofitting.loop_adapter.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        save_loop_adapter(with_random_updates(model, seed=2), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_models_without_a_place_for_updates_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`model` must be a looped model, got Linear"):
        add_loop_lora(torch.nn.Linear(2, 2), rank=2)
    with pytest.raises(ValueError, match="`model` has no per-loop LoRA to save"):
        save_loop_adapter(tiny_looped(), tmp_path)
    with pytest.raises(ValueError, match="has per-loop LoRA already, of `loop_lora_rank` 4"):
        add_loop_lora(tiny_loop_lora(), rank=2)
    with pytest.raises(ValueError, match="`rank` must be an integer of at least 1, got 0"):
        add_loop_lora(tiny_looped(), rank=0)
    with pytest.raises(ValueError, match="`loop_lora_target_modules` names 'c_attn'"):
        add_loop_lora(tiny_looped(), rank=2, target_modules=["c_attn"])
