import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from hf_loop.models import FAMILIES

from ..retrofitting.converters import test_dory, test_inkling2_loop


IDS = torch.tensor([[1, 4, 7, 5]])


@torch.no_grad()
def test_there_and_back(hf_loop, plain_folder, tmp_path):
    code, output, _ = hf_loop("retrofit", plain_folder, tmp_path / "looped", "--core", "1-1", "--set", "num_loops=3")
    assert code == 0
    assert "1+1+1 layers (prelude, core, coda), 3 loops" in output
    looped = AutoModelForCausalLM.from_pretrained(tmp_path / "looped")
    original = LlamaForCausalLM.from_pretrained(plain_folder)
    assert torch.equal(looped(IDS, num_loops=1).logits, original(IDS).logits)

    code, output, _ = hf_loop("unroll", tmp_path / "looped", tmp_path / "plain_again", "--num-loops", 4)
    assert code == 0
    assert "LlamaForCausalLM, 6 layers for 3" in output
    assert f"{original.num_parameters():,}" in output
    assert " MB" in output
    unrolled = LlamaForCausalLM.from_pretrained(tmp_path / "plain_again")
    torch.testing.assert_close(unrolled(IDS).logits, looped(IDS, num_loops=4).logits, atol=1e-6, rtol=1e-6)
    text = AutoTokenizer.from_pretrained(plain_folder)
    assert AutoTokenizer.from_pretrained(tmp_path / "plain_again").get_vocab() == text.get_vocab()


def test_layers_are_dropped_and_folded(hf_loop, plain_folder, tmp_path):
    code, output, _ = hf_loop("retrofit", plain_folder, tmp_path / "a", "--prelude", 1, "--core", "2-2", "--coda", 0)
    assert (code, "1+1+0 layers" in output) == (0, True)
    arguments = ["--coda", 1, "--set", "num_loops=2", "--set", "fold=average", "--set", "loop_lora_rank=4"]
    code, output, _ = hf_loop("retrofit", plain_folder, tmp_path / "b", *arguments)
    assert (code, "0+1+1 layers" in output) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ["--core", "2-1"],
            "--core must be FIRST-LAST with FIRST not above LAST, as in 10-19, both ends included",
        ),
        (["--core", "1-3"], "passes the end: the model has the layers 0 to 2"),
        (["--prelude", 2, "--core", "1-1"], "overlaps"),
        (["--prelude", 3], "leave no core layer"),
        (["--prelude", 1, "--set", "num_prelude_layers=1"], "--set: num_prelude_layers is set twice"),
        (["--set", "num_lops=3"], "unknown field 'num_lops' in the family 'looped'; did you mean 'num_loops'?"),
        (["--set", "num_loops=three"], "num_loops must be int, got 'three'"),
        (["--set", "sleep_window=3"], "sleep_window is no field of the family 'looped': it belongs to 'sleep'"),
        (["--family", "puzzle"], "family must be one of 'feedback', "),
    ],
)
def test_nothing_is_written_for_a_range_that_does_not_fit(hf_loop, plain_folder, tmp_path, arguments, reason):
    code, _, error = hf_loop("retrofit", plain_folder, tmp_path / "looped", *arguments)
    assert code != 0
    assert reason in error.replace("`", "")
    assert error.count("\n") == 1
    assert not (tmp_path / "looped").exists()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(test_dory.make_native, marks=test_dory.needs_dory),
        pytest.param(test_inkling2_loop.make_native, marks=test_inkling2_loop.needs_inkling),
        pytest.param(test_inkling2_loop.make_native_with_images, marks=test_inkling2_loop.needs_inkling),
    ],
)
def test_a_model_that_loops_by_itself_is_to_be_converted(hf_loop, tokenizer, make, tmp_path):
    make().save_pretrained(tmp_path / "native")
    tokenizer.save_pretrained(tmp_path / "native")
    for family in ("looped", "feedback"):
        code, _, error = hf_loop("retrofit", tmp_path / "native", tmp_path / "new", "--family", family)
        assert (code, error.count("\n")) == (2, 1)
        assert "it runs its layers in loops itself: `hf_loop.convert` makes it a looped model" in error
    assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_something_is_kept(hf_loop, plain_folder, looped_folder, tmp_path):
    for command in ("retrofit", "unroll"):
        code, _, error = hf_loop(command, looped_folder, plain_folder)
        assert code != 0
        assert "is not an empty folder" in error
    code, _, error = hf_loop("retrofit", looped_folder, tmp_path / "again")
    assert code != 0
    assert "looped model already" in error
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("family", [name for name, record in FAMILIES.items() if record.causal is not None])
def test_the_fields_of_a_family_are_listed(hf_loop, family):
    code, output, _ = hf_loop("retrofit", "--fields", family)
    assert code == 0
    for name in FAMILIES[family].own_fields:
        assert re.search(f"^{name}: .+ = .+\n    .+", output, re.MULTILINE), name


def test_what_is_listed_says_type_default_and_meaning(hf_loop):
    _, output, _ = hf_loop("retrofit", "--fields", "looped")
    assert (
        "num_loops: int = 4\n    Number of loops, the times that the core runs, unless the call says otherwise.\n"
        in output
    )
    assert "fold: 'average' | 'first' | None = None\n    share the core's M layers" in output
    code, _, error = hf_loop("retrofit", "--fields", "spiral")
    assert code == 2 and "got 'spiral'" in error
