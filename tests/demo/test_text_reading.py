"""What the page shows of a prompt is what `generate`, the lens and the exits of a model give."""

import time

import pytest
import torch

from hf_loop.analysis import loop_answers
from hf_loop.cli.quickstart import build_model
from hf_loop.demo.text_page import NO_EXITS, read_text
from hf_loop.demo.text_reading import LENS_NEW_TOKENS, LENS_TOKENS, TextReader
from hf_loop.models.exits import RULES

from .models import MODELS, PROMPT, TOKENIZER, make_model


def make_reader(kind):
    return TextReader(make_model(kind), TOKENIZER, kind)


SLIDERS = {
    "looped": ("num_loops", "loops", 4, 16),
    "gated": ("num_loops", "loops", 4, 16),
    "feedback": None,
    "feedback over looped": ("num_loops", "loops", 4, 16),
    "sleep": ("num_sleep_passes", "passes of sleep", 2, 8),
    "hierarchical": ("num_loops", "loops", 2, 8),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_has_the_controls_that_it_can_follow(kind):
    reader = make_reader(kind)
    slider = reader.slider
    assert (None if slider is None else tuple(vars(slider).values())) == SLIDERS[kind]
    can_exit = {"looped": set(RULES) - {"gate"}, "gated": set(RULES)}
    assert set(reader.rules) == can_exit.get(kind, set())


def test_a_slider_compares_the_chosen_depth_with_the_trained():
    slider = make_reader("looped").slider
    assert slider.beside(7) == [1, 2, 4, 7, 8]
    assert slider.beside(4) == [1, 2, 4, 8]
    assert slider.heading(1) == "1 loop" and slider.heading(4) == "4 loops (trained)"
    assert make_reader("sleep").slider.heading(1) == "1 pass of sleep"


@pytest.mark.parametrize("kind", MODELS)
def test_a_prompt_is_continued_at_every_depth_as_generate_does(kind):
    reader = make_reader(kind)
    reading = reader.read(PROMPT, max_new_tokens=5)
    slider = reader.slider
    assert reading.depth == (None if slider is None else slider.trained)
    assert list(reading.continuations) == ([None] if slider is None else slider.beside(slider.trained))
    inputs = TOKENIZER(PROMPT, return_tensors="pt")
    for depth, text in reading.continuations.items():
        given = {} if slider is None else {slider.argument: depth}
        output = reader.model.generate(**inputs, max_new_tokens=5, do_sample=False, **given)
        assert text == TOKENIZER.decode(output[0, inputs["input_ids"].shape[1] :])
    if kind == "looped":
        assert len(set(reading.continuations.values())) > 1


@pytest.mark.parametrize("kind", ["looped", "feedback over looped", "hierarchical"])
def test_the_lens_reads_the_prompt_and_the_chosen_continuation(kind):
    reader = make_reader(kind)
    reading = reader.read(PROMPT, 3, 4)
    found = reading.inspection
    assert (found.num_loops, reading.num_new) == (3, 4)
    written = reading.continuations[3].split()
    assert found.tokens[-4:] == written
    # the token that is read next is what all three loops gave
    assert found.top[2][-5:-1] == written
    ids = torch.tensor([TOKENIZER(PROMPT)["input_ids"] + TOKENIZER.convert_tokens_to_ids(written)])
    best = loop_answers(reader.model, ids, 3).top()[0][:, 0, :, 0]
    assert found.top == [[TOKENIZER.decode([index]) for index in row[-len(found.tokens) :]] for row in best.tolist()]


def test_the_lens_shows_the_beginning_of_a_long_continuation():
    reading = make_reader("looped").read(" ".join([PROMPT] * 4), 2, 40)
    assert (len(reading.inspection.tokens), reading.num_new) == (LENS_TOKENS, LENS_NEW_TOKENS)
    assert reading.inspection.tokens[-LENS_NEW_TOKENS:] == reading.continuations[2].split()[:LENS_NEW_TOKENS]


def test_exits_are_those_of_the_model():
    reader = make_reader("gated")
    reading = reader.read(PROMPT, 6, 3, "state_change", 0.6)
    exits = reading.exits
    ids = TOKENIZER(PROMPT)["input_ids"] + TOKENIZER.convert_tokens_to_ids(reading.continuations[6].split())
    options = {"num_loops": 6, "use_cache": False}
    early = reader.model(torch.tensor([ids]), exit_criterion="state_change", exit_threshold=0.6, **options)
    assert exits.loops == early.exit_loops[0].tolist() and len(set(exits.loops)) > 1
    assert exits.share_skipped == pytest.approx(1 - early.exit_loops.float().mean().item() / 6)
    full = reader.model(torch.tensor([ids]), **options)
    assert exits.is_same == (early.logits.argmax(-1) == full.logits.argmax(-1))[0].tolist()
    # a threshold that no token reaches gives all loops, and the same answers
    all_loops = reader.read(PROMPT, 6, 3, "kl", 0.0).exits
    assert set(all_loops.loops) == {6} and all(all_loops.is_same)


@pytest.mark.parametrize("kind", ["feedback", "sleep"])
def test_a_model_of_blocks_shows_its_memory(kind):
    reading = make_reader(kind).read(PROMPT, max_new_tokens=5)
    assert reading.inspection is None
    assert len(reading.tokens) == len(reading.memory.blocks) == len(TOKENIZER(PROMPT)["input_ids"]) + 5
    assert make_reader("looped").read(PROMPT, max_new_tokens=1).memory is None
    # of the chosen depth: a prelude layer, two loops of a layer, and a coda layer
    assert "in each of 4 layer calls" in make_reader("feedback over looped").read(PROMPT, 2).memory.memory


SETTINGS = [{"exit_criterion": "state_change", "exit_threshold": 100.0}, {"repetition_penalty": 9.0}, {"num_beams": 3}]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
def test_the_models_own_settings_change_no_column(settings):
    reader = make_reader("looped")
    expected = reader.read(PROMPT, max_new_tokens=5).continuations
    for name, value in settings.items():
        setattr(reader.model.generation_config, name, value)
    assert reader.read(PROMPT, max_new_tokens=5).continuations == expected


FAULTS = {
    "an empty prompt": ({"prompt": ""}, None),
    "an unknown rule": ({"criterion": "never"}, "the exit rule must be one of"),
    "a rule without its gate": ({"criterion": "gate"}, "the exit rule must be one of"),
    "a threshold out of range": ({"criterion": "stable_argmax", "threshold": 0.5}, "`exit_threshold` must be from 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_said_on_the_page(fault):
    given, message = FAULTS[fault]
    values = {"prompt": PROMPT, "depth": 4, "new_tokens": 2, "criterion": NO_EXITS, "threshold": None, **given}
    continuations, lens, memory = read_text(make_reader("looped"), *values.values())
    if message is None:
        # this tokenizer begins every text with a token of its own
        assert "columns" in continuations
    else:
        assert f'<p class="fault">{message}' in continuations and lens == memory == ""


def test_a_request_takes_less_than_a_second_on_a_model_of_the_quickstarts_size():
    reader = TextReader(build_model(TOKENIZER, 6, 0).eval(), TOKENIZER, "quickstart")
    prompt = "ball:2 1<->2 2<->3 1<->3 1<->2 2<->3 1<->3 1<->2 2<->3"
    read_text(reader, prompt, 6, 1, "kl", None)
    # of the processor: other jobs may share it
    start = time.process_time()
    read_text(reader, prompt, 6, 16, "kl", None)
    assert time.process_time() - start < 1
