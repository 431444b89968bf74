"""Loops the middle layers of a model you have, without training, and makes a plain model of it again.

With a tiny Llama of random weights, in seconds:
    python training/loop_a_model.py

With a checkpoint: a folder, a name on the Hub or a GGUF file:
    python training/loop_a_model.py HuggingFaceTB/SmolLM2-135M-Instruct --prompt "The capital of France is"

More loops cost more computation and no weights. Before training they do not help: see training/recipes/retrofit.
"""

import argparse
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, set_seed

import hf_loop
from hf_loop.loading import load_pretrained
from hf_loop.text_parts import load_decoder
from hf_loop.tokenizing import encode_prompt, load_tokenizer
from hf_loop.trainer.data import byte_tokenizer


def tiny_llama() -> tuple[Any, Any]:
    """Make a Llama that has learned nothing, and a tokenizer of bytes."""
    set_seed(0)
    tokenizer = byte_tokenizer()
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).eval(), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="by default a tiny one of random weights")
    parser.add_argument("--prompt", default="The sea was")
    parser.add_argument("--output-dir", default="outputs/loop_a_model")
    args = parser.parse_args()
    original, tokenizer = tiny_llama()
    if args.model is not None:
        original, tokenizer = load_decoder(args.model), load_tokenizer(args.model)
    # some tokenizers return more than a decoder takes
    input_ids, attention_mask = encode_prompt(tokenizer, args.prompt)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    with torch.no_grad():
        expected = original(**inputs).logits

    # the last fifth of the layers prepares the output, and the first two fifths the input of the loop
    num_layers = original.config.num_hidden_layers
    num_outside = 2 * num_layers // 5
    looped = hf_loop.retrofit(original, num_prelude_layers=num_outside, num_coda_layers=num_outside, num_loops=2)
    with torch.no_grad():
        is_original = torch.equal(looped(**inputs, num_loops=1).logits, expected)
    shape = f"{num_outside} + {num_layers - 2 * num_outside} + {num_outside} layers"
    print(f"{shape}; one loop is the original: {is_original}")
    for num_loops in (1, 2):
        tokens = looped.generate(**inputs, num_loops=num_loops, max_new_tokens=12, do_sample=False)
        text = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :])
        print(f"{num_loops} x, {len(looped.config.calls(num_loops=num_loops))} layer calls: {text!r}")

    # an ordinary checkpoint, at any number of loops
    looped.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    loaded = load_pretrained(AutoModelForCausalLM, args.output_dir, num_loops=3)
    plain = hf_loop.unroll(loaded)
    with torch.no_grad():
        difference = (plain(**inputs).logits - loaded(**inputs).logits).abs().max()
    print(f"loaded with 3 loops, written out as a plain model of {plain.config.num_hidden_layers} layers: ", end="")
    print(f"logits differ by {difference:.0e}")


if __name__ == "__main__":
    main()
