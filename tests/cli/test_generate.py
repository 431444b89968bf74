from typing import Any

import pytest

from hf_loop.cli.load import load_model


PROMPT = "ball:2 1<->2 2<->3"


def test_it_prints_each_count_in_its_column(hf_loop, looped_folder, tokenizer, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = hf_loop("generate", looped_folder, "--loops", "1,2,5", PROMPT, "--max-new-tokens", 4)
    assert code == 0
    assert all(heading in out for heading in ("1 loop ", "2 loops", "5 loops"))
    model: Any = load_model(str(looped_folder))
    inputs = tokenizer(PROMPT, return_tensors="pt")
    for num_loops in (1, 2, 5):
        tokens = model.generate(**inputs, num_loops=num_loops, max_new_tokens=4, do_sample=False)
        continuation = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert " ".join(continuation.split()) in " ".join(out.split())


def test_a_narrow_terminal_gets_rows(hf_loop, looped_folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = hf_loop("generate", looped_folder, PROMPT, "--max-new-tokens", 2)
    assert code == 0
    assert "continuation" in out
    assert [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")] == ["1", "2", "4", "8"]


def test_a_plain_checkpoint_and_sampling(hf_loop, plain_folder):
    arguments = ("generate", plain_folder, PROMPT, "--core", "1-2", "--loops", "1,2", "--temperature", "0.7")
    code, out, _ = hf_loop(*arguments, "--seed", 3)
    assert code == 0
    assert hf_loop(*arguments, "--seed", 3)[1] == out


def test_chat_goes_through_the_template(hf_loop, looped_folder, tokenizer):
    code, _, err = hf_loop("generate", looped_folder, PROMPT, "--chat")
    assert code == 2
    assert "no chat template" in err
    (looped_folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }} ball:1")
    code, out, _ = hf_loop("generate", looped_folder, PROMPT, "--chat", "--loops", "1", "--max-new-tokens", "2")
    assert code == 0
    assert "1 loop" in out


def test_bytes_that_are_no_text_are_refused(hf_loop, looped_folder):
    # what Python makes of such an argument
    code, out, err = hf_loop("generate", looped_folder, "ball \udcff")
    assert (code, out, err) == (2, "", "hf-loop: error: the prompt holds bytes that are no text in UTF-8\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loops", "1,two"], "'two' is not a loop count"),
        (["--core", "0-1"], "is a looped model already"),
        (["--core", "1-0"], "--core` must be FIRST-LAST"),
    ],
)
def test_errors_are_one_line(hf_loop, looped_folder, arguments, message):
    code, out, err = hf_loop("generate", looped_folder, PROMPT, *arguments)
    assert (code, out.strip(), err.count("\n")) == (2, "", 1)
    assert message in err
