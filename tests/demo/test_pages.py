"""The pages as gradio builds them; skipped where it is not installed. `test_browser.py` opens them in a browser."""

import re

import pytest

from hf_loop.demo.page import Page, serve
from hf_loop.demo.puzzle_page import puzzle_page, read_puzzle
from hf_loop.demo.puzzle_reading import PuzzleReader
from hf_loop.demo.text_page import LONGEST_PROMPT, NO_EXITS, read_text, text_page
from hf_loop.demo.text_reading import TextReader

from .models import PROMPT, PUZZLE_TOKENIZER, TOKENIZER, make_model, make_solver


pytest.importorskip("gradio")


def components(blocks):
    """The components of a page by their ids."""
    found = {item["props"].get("elem_id"): item for item in blocks.get_config_file()["components"]}
    return {name: item["props"] for name, item in found.items() if name is not None}


def make_page(kind, **fields):
    return text_page(TextReader(make_model(kind), TOKENIZER, kind), Page(kind, "in loops", **fields))


CONTROLS = {
    "looped": {"depth", "exit-rule", "threshold"},
    "gated": {"depth", "exit-rule", "threshold"},
    "feedback": set(),
    "feedback over looped": {"depth"},
    "sleep": {"depth"},
    "hierarchical": {"depth"},
}


@pytest.mark.parametrize("kind", CONTROLS)
def test_a_page_has_the_controls_of_its_model(kind):
    found = components(make_page(kind, example=PROMPT, new_tokens=100))
    assert found.keys() & {"depth", "exit-rule", "threshold"} == CONTROLS[kind]
    assert found["prompt"]["value"] == PROMPT and found["new-tokens"]["value"] == 64
    assert found["lens"]["visible"] == (kind not in ("feedback", "sleep"))
    assert found["memory"]["visible"] == ("feedback" in kind or kind == "sleep")
    if kind == "gated":
        assert (found["exit-rule"]["value"], found["threshold"]["value"]) == ("gate", 0.5)
    if kind == "looped":
        assert (found["exit-rule"]["value"], found["threshold"]["value"]) == ("kl", 5e-4)


def test_a_page_opens_with_its_example_and_only_with_one():
    def loads(blocks):
        return [call for call in blocks.fns.values() if any(event == "load" for _, event in call.targets)]

    assert len(loads(make_page("looped", example=PROMPT))) == 1
    assert loads(make_page("looped")) == []


def test_a_puzzle_page_begins_with_a_puzzle():
    found = components(puzzle_page(PuzzleReader(make_solver(), PUZZLE_TOKENIZER, "solver"), Page("solver", "")))
    assert len(found["prompt"]["value"].splitlines()) == 4
    assert (found["depth"]["value"], found["depth"]["maximum"], found["loops"]["value"]) == (4, 8, 1)
    assert "puzzle-id" not in found
    several = make_solver(num_puzzles=3, num_puzzle_tokens=1)
    found = components(puzzle_page(PuzzleReader(several, PUZZLE_TOKENIZER, "solver"), Page("solver", "")))
    assert found["puzzle-id"]["maximum"] == 2


def test_who_calls_a_page_without_a_browser_can_send_no_more_than_the_field_takes():
    model, solver = make_model("looped"), make_solver()
    assert components(make_page("looped"))["prompt"]["max_length"] == LONGEST_PROMPT
    reader = TextReader(model, TOKENIZER, "looped")
    assert "the prompt must have at most 4000" in read_text(reader, "flip " * 1000, 4, 2, NO_EXITS, None)[0]
    reader = PuzzleReader(solver, PUZZLE_TOKENIZER, "solver")
    assert "the puzzle must have at most 2500" in read_puzzle(reader, "0" * 2501, 1, 1, None)[0]


def test_nothing_on_the_page_is_fetched_from_elsewhere():
    blocks = make_page("looped")
    try:
        assert serve(blocks).startswith("http://127.0.0.1:")
        assert blocks.analytics_enabled is False and blocks.share is False
        assert not re.search(r"url\(['\"]?https?:", blocks.theme_css)
    finally:
        blocks.close()


def test_calls_of_the_model_wait_for_each_other():
    calls = [call for call in make_page("looped", example=PROMPT).fns.values() if call.queue]
    assert len(calls) == 2
    assert {(call.concurrency_id, call.concurrency_limit) for call in calls} == {("model", 1)}


@pytest.mark.parametrize("num_silent", [2, 5])
def test_a_page_that_is_slow_to_answer_is_asked_again(num_silent, monkeypatch):
    asked = []

    def answers(url):
        asked.append(url)
        return len(asked) > num_silent

    monkeypatch.setattr("gradio.networking.url_ok", answers)
    blocks = make_page("looped")
    try:
        if num_silent < 5:
            assert serve(blocks) == asked[0]
        else:
            with pytest.raises(ValueError, match="does not answer at http://127.0.0.1:.*NO_PROXY"):
                serve(blocks)
        assert len(asked) == min(num_silent + 1, 5) and len(set(asked)) == 1
    finally:
        blocks.close()
