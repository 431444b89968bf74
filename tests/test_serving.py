"""A model with its loops written out, served by `transformers serve` and asked through an OpenAI client."""

import os
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from transformers import LlamaConfig, set_seed

from hf_loop import LoopedConfig, LoopedForCausalLM
from hf_loop.cli.main import main
from hf_loop.tasks.tokenizer import word_tokenizer


openai = pytest.importorskip("openai", reason="the server and its client are in the extra dev")
pytest.importorskip("fastapi", reason="as openai")

NUM_NEW_TOKENS = 12
PROMPT = "w1 w2 w3 w4"
MESSAGES = [{"role": "user", "content": PROMPT}]
# the console script, without its look for a newer release
SERVE = "from transformers.cli.transformers import app; app()"


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = word_tokenizer([f"w{n}" for n in range(28)])
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} w0 {% endfor %}"
    return tokenizer


@pytest.fixture(scope="module")
def looped(tokenizer):
    set_seed(1)
    backbone_config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LoopedConfig(backbone_config=backbone_config, num_prelude_layers=1, num_coda_layers=1, num_loops=4)
    model = LoopedForCausalLM(config).eval()
    # words alone, so that the text of an answer says which tokens it is
    with torch.no_grad():
        model.lm_head.weight[:4] = 0
    return model


@pytest.fixture(scope="module")
def folder(looped, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    looped.save_pretrained(folder / "looped")
    tokenizer.save_pretrained(folder / "looped")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", ["hf-loop", "unroll", str(folder / "looped"), str(folder / "plain"), "--quiet"])
        main()
    assert not stop.value.code
    return folder / "plain"


@pytest.fixture(scope="module")
def client(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
    with open(folder.parent / "serve.log", "w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            for _ in range(600):
                assert server.poll() is None, (log.seek(0), log.read()[-2000:])
                try:
                    urlopen(f"http://127.0.0.1:{port}/health", timeout=10).close()
                    break
                except URLError:
                    time.sleep(0.5)
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
        finally:
            server.terminate()
            server.wait(timeout=30)


def expected_tokens(looped, inputs):
    generated = looped.generate(**inputs, max_new_tokens=NUM_NEW_TOKENS, do_sample=False)
    return generated[0, inputs["input_ids"].shape[1] :].tolist()


def tokens_of(text, tokenizer):
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.slow
def test_an_unrolled_model_answers_what_our_generate_answers(client, folder, looped, tokenizer):
    expected = expected_tokens(looped, tokenizer(PROMPT, return_tensors="pt"))
    # the loops matter
    once = looped.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=NUM_NEW_TOKENS, num_loops=1)
    assert once[0, -NUM_NEW_TOKENS:].tolist() != expected
    answer = client.completions.create(model=str(folder), prompt=PROMPT, max_tokens=NUM_NEW_TOKENS, temperature=0)
    assert tokens_of(answer.choices[0].text, tokenizer) == expected
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (NUM_NEW_TOKENS, "length")

    chat = tokenizer.apply_chat_template(MESSAGES, return_tensors="pt", return_dict=True, add_generation_prompt=True)
    expected = expected_tokens(looped, chat)
    asked = {"model": str(folder), "messages": MESSAGES, "max_tokens": NUM_NEW_TOKENS, "temperature": 0}
    answer = client.chat.completions.create(**asked)
    assert tokens_of(answer.choices[0].message.content, tokenizer) == expected
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)]
    assert tokens_of("".join(pieces), tokenizer) == expected
