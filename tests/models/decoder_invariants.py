"""What a looped model over a decoder must hold, whichever decoder it is.

Invariant 1: with one loop it is the decoder itself, bit for bit. Invariant 2: a cache changes nothing, at any number
of loops and however the tokens are cut into calls.
"""

import tempfile
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from hf_loop import retrofit

from .tiny_decoders import VOCABULARY, tiny_decoder


# of logits in single precision: what caching may change by rounding, for logits of at most 1
TOLERANCE = 1e-4
NUM_TOKENS = 10
# the whole prompt, token by token, and in chunks
PIECES = ([NUM_TOKENS], [1] * NUM_TOKENS, [5, 3] + [1] * (NUM_TOKENS - 8))
FEW_PARAMETERS = 20_000_000


def random_decoder(model_type: str) -> PreTrainedModel:
    """A tiny decoder in evaluation mode with random weights.

    Raises:
        ValueError: it is not tiny.
    """
    config = tiny_decoder(model_type)
    with torch.device("meta"):
        num_parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    if num_parameters > FEW_PARAMETERS:
        raise ValueError(f"its tiny configuration has {num_parameters:,} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    # larger weights than the default of 0.02 tell apart what two layer orders or masks compute
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


@torch.no_grad()
def find_difference(base: Any) -> str | None:
    """The first thing that a looped model over `base` does not hold, `None` where it holds all.

    Raises:
        ValueError: hf_loop refuses the decoder.
    """
    torch.manual_seed(1)
    input_ids = torch.randint(3, VOCABULARY, (3, NUM_TOKENS))
    attention_mask = torch.ones_like(input_ids)
    # padding on the left, of another length in every row
    for row, num_padded in enumerate((4, 1, 0)):
        attention_mask[row, :num_padded] = 0
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    expected = base(**inputs, use_cache=False).logits
    looped: Any = retrofit(base, num_prelude_layers=1, num_coda_layers=1, num_loops=3)

    visible = attention_mask.bool()
    logits = looped(**inputs, num_loops=1, use_cache=False).logits
    if not torch.equal(logits[visible], expected[visible]):
        return "one loop differs from the decoder itself"
    for num_loops in (1, 2, 3):
        difference = _cache_difference(looped, input_ids, num_loops) or _generate_difference(looped, inputs, num_loops)
        if difference is not None:
            return f"at num_loops={num_loops} {difference}"
    return _reload_difference(looped, inputs)


def _cache_difference(looped: Any, input_ids: torch.Tensor, num_loops: int) -> str | None:
    expected = looped(input_ids, num_loops=num_loops, use_cache=False).logits
    tolerance = TOLERANCE * max(1.0, expected.abs().max().item())
    for pieces in PIECES:
        cache = DynamicCache(config=looped.config.with_num_loops(num_loops))
        logits = [
            looped(piece, num_loops=num_loops, cache=cache, use_cache=True).logits
            for piece in input_ids.split(pieces, dim=1)
        ]
        if not (torch.cat(logits, dim=1) - expected).abs().max() <= tolerance:
            return f"a cache changes the logits of pieces of {pieces[0]}, {pieces[-1]} tokens"
    return None


def _generate_difference(looped: Any, inputs: dict[str, torch.Tensor], num_loops: int) -> str | None:
    options = {"num_loops": num_loops, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with_cache = looped.generate(**inputs, **options, use_cache=True)
    if torch.equal(with_cache, looped.generate(**inputs, **options, use_cache=False)):
        return None
    return "generate gives other tokens with a cache"


def _reload_difference(looped: Any, inputs: dict[str, torch.Tensor]) -> str | None:
    expected = looped(**inputs, num_loops=2, use_cache=False).logits
    with tempfile.TemporaryDirectory() as folder:
        looped.save_pretrained(folder)
        reloaded: Any = type(looped).from_pretrained(folder).eval()
    if torch.equal(reloaded(**inputs, num_loops=2, use_cache=False).logits, expected):
        return None
    return "a saved model computes something else when it is loaded again"
