"""A memory file whose fingerprint fits and whose tensors do not is refused, by the name of the first that does not."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .feedback_variants import VARIANTS as FEEDBACK
from .feedback_variants import make_feedback
from .model_tester import left_pad, random_ids
from .sleep_variants import VARIANTS as SLEEP
from .sleep_variants import make_sleep


MODELS = {
    "feedback": lambda: make_feedback(**FEEDBACK["one segment"]),
    "feedback of all segments": lambda: make_feedback(**FEEDBACK["all segments"]),
    "recurrent memory tokens": lambda: make_feedback(**FEEDBACK["recurrent memory tokens"]),
    "sleep": lambda: make_sleep(**SLEEP["qwen3_next"]),
    "sliding sleep": lambda: make_sleep(**SLEEP["sliding eviction, middle layers"]),
}


def drop(tensors, name):
    del tensors[name]


def rename(tensors, name):
    tensors[f"{name}s"] = tensors.pop(name)


def move(tensors, name):
    tensors[f"layers.99.{name.split('.')[-1]}"] = tensors.pop(name)


def retype(tensors, name):
    tensors[name] = tensors[name].to(torch.int32 if tensors[name].ndim == 1 else torch.float64)


def add_row(tensors, name):
    tensors[name] = torch.cat([tensors[name], tensors[name][:1]])


def cut_last(tensors, name):
    tensors[name] = tensors[name][..., :-1].clone()


def cut_middle(tensors, name):
    dim = 2 if tensors[name].ndim == 4 else 1 if tensors[name].ndim > 1 else 0
    tensors[name] = tensors[name].narrow(dim, 0, tensors[name].shape[dim] - 1).clone()


def reshape(tensors, name):
    tensors[name] = tensors[name].flatten()[None].clone()


STRUCTURE = [drop, rename, move, retype, add_row, cut_last, cut_middle, reshape]


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """A model, the file of its memory of two texts, the tensors in it and what it says about them."""
    model = MODELS[request.param]()
    ids, mask = left_pad([random_ids(1, length, seed=length)[0] for length in (9, 6)])
    path = tmp_path_factory.mktemp("memory") / "memory.safetensors"
    with torch.no_grad():
        model.save_memory(model(ids, attention_mask=mask, use_cache=True).cache, path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    return model, path, load_file(path), metadata


def refusal(model, path: Path, tensors, metadata) -> str:
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match="`path` must be a memory file of this model") as error:
        model.load_memory(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def without(metadata: dict[str, str]) -> dict[str, str]:
    """What a file of an earlier version says about itself."""
    return {name: value for name, value in metadata.items() if name not in ("content", "num_slots")}


@pytest.mark.parametrize("change", STRUCTURE)
def test_every_tensor_is_held_to_the_model(change, saved, tmp_path):
    model, _, tensors, metadata = saved
    for name in tensors:
        changed = dict(tensors)
        change(changed, name)
        if any(tensor.numel() == 0 for tensor in changed.values()) or name.endswith("start_recurrent"):
            continue
        for described in (metadata, without(metadata)):
            message = refusal(model, tmp_path / "memory", changed, described)
            assert "layers." in message or " layers" in message, (name, message)


def test_values_are_those_that_were_saved(saved, tmp_path):
    model, _, tensors, metadata = saved
    large = [name for name, tensor in tensors.items() if tensor.ndim > 1 and tensor.numel() > 0]
    for name in large:
        changed = {**tensors, name: tensors[name] + 1}
        assert "not those that were saved" in refusal(model, tmp_path / "memory", changed, metadata)
    first, last = large[0], next(name for name in reversed(large) if tensors[name].shape == tensors[large[0]].shape)
    changed = {**tensors, first: tensors[last].clone(), last: tensors[first].clone()}
    if first != last:
        assert "not those that were saved" in refusal(model, tmp_path / "memory", changed, metadata)


@pytest.mark.parametrize("name", ["weight", "layers.keys", "layers.-1.keys", "layers.x.keys", "layers.999999999.keys"])
def test_foreign_names_are_refused_before_anything_is_made_for_them(name, saved, tmp_path):
    model, _, tensors, metadata = saved
    changed = {**tensors, name: torch.ones(2)}
    for described in (metadata, without(metadata), metadata | {"num_slots": "999999999"}):
        refusal(model, tmp_path / "memory", changed, described)


def test_negative_counts_are_refused(saved, tmp_path):
    model, _, tensors, metadata = saved
    for name in (name for name in tensors if tensors[name].dtype == torch.int64):
        message = refusal(model, tmp_path / "memory", {**tensors, name: -tensors[name] - 1}, without(metadata))
        assert f"{name} must not be negative" in message


def test_files_of_earlier_versions_are_loaded(saved, tmp_path):
    model, path, tensors, metadata = saved
    save_file(tensors, tmp_path / "memory", metadata=without(metadata))
    ids = random_ids(2, 3)
    with torch.no_grad():
        loaded = [model(ids, cache=model.load_memory(file)).logits for file in (path, tmp_path / "memory")]
    assert torch.equal(*loaded)


def test_loading_leaves_the_model_in_its_mode(saved):
    model, path, _, _ = saved
    model.train()
    model.load_memory(path)
    assert model.training
    model.eval()
    model.load_memory(path)
    assert not model.training
