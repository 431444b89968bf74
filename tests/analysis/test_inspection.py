"""What a look inside finds is what the machine does; its file and its figure keep it."""

import math
import struct
from typing import Any

import pytest
import torch

from hf_loop.analysis.inspection import find_token, inspect_prompt, show_token
from hf_loop.analysis.inspection_plots import cut, plot_inspection
from hf_loop.analysis.inspection_results import Inspection, to_markdown

from ..models.composed_variants import make_composed
from ..models.feedback_variants import make_feedback
from ..models.hierarchical_variants import tiny_hierarchical
from .constructed import make_constructed, make_constructed_tokenizer


PROMPT = "a>b b>c c>d d>d e>f f>e e a"


@pytest.fixture(scope="module")
def tokenizer():
    return make_constructed_tokenizer()


def found_on_the_machine(tokenizer, num_loops=6, **options):
    model = make_constructed(num_loops=num_loops, num_core_layers=2, num_coda_layers=1)
    return inspect_prompt(model, tokenizer, PROMPT, last=2, **options)


def test_it_finds_the_steps(tokenizer):
    found = found_on_the_machine(tokenizer, token="d")
    assert found.tokens == ["e", "a"]
    assert found.positions == [7, 8]
    assert [row[0] for row in found.top] == ["f", "e"] * 3
    assert [row[1] for row in found.top] == ["b", "c", "d", "d", "d", "d"]
    assert min(min(row) for row in found.probability) > 0.999
    assert (found.periods, found.since) == ([2, 1], [1, 3])
    assert [row[1] == 0 for row in found.followed_rank] == [False, False, True, True, True, True]
    assert (found.settled(), found.settled(0)) == (3, 6)
    # only e moves after the third loop, by sqrt(2) of a state of norm sqrt(2): half of it is the mean
    assert found.step_norm == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.5, 0.5], abs=1e-5)
    assert found.cosine[0] is None


def test_a_layer_inside_the_loop(tokenizer):
    found = found_on_the_machine(tokenizer, layer=0)
    # before the second layer the pointer has not moved
    assert [row[1] for row in found.top] == ["a", "b", "c", "d", "d", "d"]
    assert found.readout == "layer 0"


def test_it_is_kept_in_a_file(tokenizer, tmp_path):
    found = found_on_the_machine(tokenizer, token="d")
    found.save(tmp_path / "inspect.json")
    assert Inspection.load(tmp_path / "inspect.json") == found
    (tmp_path / "inspect.json").write_text('{"label": "x"}')
    with pytest.raises(ValueError, match="inspect.json lacks the field 'prompt'"):
        Inspection.load(tmp_path / "inspect.json")
    with pytest.raises(ValueError, match="of 2 tokens must have as many entries, got 1"):
        Inspection(**{**vars(found), "periods": [1]})


@pytest.mark.parametrize("num_loops", [1, 70])
def test_it_is_drawn(tokenizer, tmp_path, num_loops, recwarn):
    found = found_on_the_machine(tokenizer, num_loops=num_loops, token="d")
    # text that matplotlib would take for a formula
    found.top[0][0] = found.tokens[0] = "$x_$"
    found.prompt = "costs $5 and $x$"
    plot_inspection(found, tmp_path / "inspect.png")
    assert (tmp_path / "inspect.png").read_bytes().startswith(b"\x89PNG")
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("num_tokens", [3, 24, 25, 600])
def test_any_prompt_is_drawn_at_a_size_that_a_page_shows(tmp_path, num_tokens, recwarn):
    tokens = [["你好", "' '", "$x$", "мир", "😀"][index % 5] for index in range(num_tokens)]
    flat: dict[str, Any] = dict.fromkeys(("step_norm", "cosine", "acceleration", "distance_to_final"), [0.5, None])
    found = Inspection(
        label="$model$",
        prompt="你好$" * 200,
        readout="answer",
        trained_loops=2,
        positions=list(range(num_tokens)),
        tokens=tokens,
        top=[tokens] * 2,
        probability=[[0.5] * num_tokens] * 2,
        periods=[0] * num_tokens,
        since=[0] * num_tokens,
        **flat,
    )
    plot_inspection(found, tmp_path / "inspect.png")
    # no character that the font does not have was drawn as a box
    assert not recwarn.list
    width, _ = struct.unpack(">II", (tmp_path / "inspect.png").read_bytes()[16:24])
    assert width < 4200


def test_a_text_is_cut_between_characters_as_they_are_drawn():
    assert cut("transformers") == "transform…"
    assert cut("transforms") == "transforms"
    assert cut("你好") == r"\u4f60…"
    assert cut("𠀀!") == r"\U00020000…"
    assert cut("a cost of $5", 8, at_end=True) == r"… of \$5"


def test_a_state_that_overflows_is_kept_and_drawn(tokenizer, tmp_path):
    model = make_constructed(num_loops=3)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.inf)
    found = inspect_prompt(model, tokenizer, PROMPT, last=2, token="d")
    assert found.probability == found.followed_probability == [[None] * 2] * 3
    found.save(tmp_path / "inspect.json")
    assert Inspection.load(tmp_path / "inspect.json") == found
    plot_inspection(found, tmp_path / "inspect.png")
    assert "(probability –)" in to_markdown(found, "inspect.png")


@pytest.mark.parametrize("make", [tiny_hierarchical, lambda: make_composed("feedback", "looped")])
def test_other_families(make, tokenizer):
    model = make()
    found = inspect_prompt(model, tokenizer, PROMPT, num_loops=3, last=4)
    assert (found.num_loops, len(found.tokens)) == (3, 4)
    assert all(value is None or math.isfinite(value) for value in found.step_norm)


def test_tokens_as_text(tokenizer):
    assert find_token(tokenizer, "a>b") == tokenizer.convert_tokens_to_ids("a>b")
    assert show_token(tokenizer, 4) == "a"
    assert show_token(tokenizer, len(tokenizer)) == f"[{len(tokenizer)}]"
    with pytest.raises(ValueError, match="'a b' is 2 tokens"):
        find_token(tokenizer, "a b")
    with pytest.raises(ValueError, match="'q' is no token"):
        find_token(tokenizer, "q")


def test_refusals(tokenizer):
    with pytest.raises(ValueError, match="which does not run in loops"):
        inspect_prompt(make_feedback(), tokenizer, PROMPT)
    with pytest.raises(ValueError, match="`layer` must be one of 0, 1, got 2"):
        found_on_the_machine(tokenizer, layer=2)
    with pytest.raises(ValueError, match="`layer` must be None: every layer runs several times in a loop, got 0"):
        inspect_prompt(tiny_hierarchical(shared_stack=True), tokenizer, PROMPT, layer=0)
