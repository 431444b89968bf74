"""`hf-loop chat`: every line gets the answer that `generate` gives to the whole conversation."""

import io

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from hf_loop import FeedbackConfig, HierarchicalConfig, LoopedConfig, SleepConfig, models
from hf_loop.loading import load_pretrained


TEMPLATE = (
    "{% for message in messages %}{{ 'ball:1 ' if message['role'] == 'user' else 'ball:2 ' }}"
    "{{ message['content'] + ' ' }}{% endfor %}{% if add_generation_prompt %}ball:3{% endif %}"
)
LINES = ["ball:2 1<->2", "1<->3 2<->3"]
FAMILIES = {
    "looped": lambda backbone: LoopedConfig(backbone_config=backbone, num_prelude_layers=1, num_loops=2),
    "feedback": lambda backbone: FeedbackConfig(backbone_config=backbone, block_size=4, feedback_length=2),
    "sleep": lambda backbone: SleepConfig(backbone_config=backbone, sleep_window=4, fast_weight_layers=[1]),
    "hierarchical": lambda backbone: HierarchicalConfig(backbone_config=backbone, shared_stack=True),
    "feedback over looped": lambda backbone: FeedbackConfig(
        backbone_config=LoopedConfig(backbone_config=backbone, num_loops=2), block_size=4, feedback_length=2
    ),
}


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path, tokenizer, backbone_config):
    set_seed(0)
    config = FAMILIES[request.param](backbone_config)
    causal = models.FAMILIES[config.model_type.removesuffix("_lm")].causal
    causal(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def talk(hf_loop, monkeypatch):
    """Run the command on lines and return its exit code, its answers and its notes."""

    def run(folder, *lines, options=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code, out, error = hf_loop("chat", folder, "--max-new-tokens", 4, *options)
        return code, out.splitlines(), [line for line in error.splitlines() if "it/s]" not in line]

    return run


def expected_answers(folder, lines, **depth):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_pretrained(AutoModelForCausalLM, folder)
    messages, answers = [], []
    for line in lines:
        messages.append({"role": "user", "content": line})
        if tokenizer.chat_template:
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            text = "".join(message["content"] + ("" if message["role"] == "user" else "\n") for message in messages)
            inputs = tokenizer(text, return_tensors="pt")
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        output = model.generate(**inputs, max_new_tokens=4, do_sample=False, **depth)
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        messages.append({"role": "assistant", "content": answers[-1]})
    return [answer.strip() for answer in answers]


@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["template", "no template"])
def test_every_line_is_answered_after_all_before_it(folder, template, talk):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    code, answers, notes = talk(folder, *LINES, "")
    assert code == 0
    assert [answer.strip() for answer in answers] == expected_answers(folder, LINES)
    assert any("no chat template" in note for note in notes) == (template is None)


def test_the_depth_changes_while_talking(looped_folder, talk):
    code, answers, notes = talk(looped_folder, LINES[0], "/new", "/loops 1", LINES[0], options=("--loops", 5))
    assert code == 0 and notes[-2:] == ["a new conversation", "1 loops from here on"]
    expected = [expected_answers(looped_folder, LINES[:1], num_loops=count)[0] for count in (5, 1)]
    assert [answer.strip() for answer in answers] == expected


@pytest.mark.parametrize("command", ["/loops", "/loops x", "/loops 0", "/loops 1,2", "/quit", "/new now", "\udcff"])
def test_a_wrong_command_is_told_and_the_conversation_goes_on(command, looped_folder, talk):
    code, answers, notes = talk(looped_folder, command, LINES[0])
    assert code == 0 and len(answers) == 1
    assert notes[-1].startswith("error: ")


def test_a_model_without_loops_has_no_depth_to_change(tmp_path, tokenizer, backbone_config, talk):
    models.FeedbackForCausalLM(FAMILIES["feedback"](backbone_config)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code, answers, notes = talk(tmp_path, "/loops 2", LINES[0])
    assert code == 0 and len(answers) == 1 and "has no loops" in notes[-1]
    code, answers, notes = talk(tmp_path, LINES[0], options=("--loops", 2))
    assert code == 2 and answers == [] and "which has no loops" in notes[-1]


def test_a_plain_model_talks_too(plain_folder, talk):
    code, answers, _ = talk(plain_folder, *LINES)
    assert code == 0
    assert [answer.strip() for answer in answers] == expected_answers(plain_folder, LINES)


def test_a_template_that_refuses_a_line_is_told(looped_folder, talk):
    tokenizer = AutoTokenizer.from_pretrained(looped_folder)
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    tokenizer.save_pretrained(looped_folder)
    code, answers, notes = talk(looped_folder, LINES[0])
    assert (code, answers, notes[-1]) == (0, [], "error: no such role")


def test_control_c_leaves_with_the_code_of_an_interruption(looped_folder, hf_loop, monkeypatch):
    def interrupted(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    code, out, error = hf_loop("chat", looped_folder)
    assert code == 130 and out == "" and error.endswith("hf-loop: interrupted\n")
