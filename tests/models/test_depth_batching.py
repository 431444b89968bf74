"""Continuous depth batching gives every prompt what `generate` gives for it alone."""

import pytest
import torch
from transformers import LlamaConfig

from hf_loop import LoopedConfig, LoopedForCausalLM
from hf_loop.models.depth_blocks import BlockRows, DepthBlock
from hf_loop.models.exits import ExitRule

from .looped_variants import VARIANTS, tiny_looped
from .model_tester import random_ids


NUM_LOOPS = 5
# threshold that lets tokens of the tiny models exit at different loops
RULES = {"state_change": 0.4, "kl": 0.01, "stable_argmax": 2, "entropy": 4.527}
GREEDY = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
# more prompts than rows, of different lengths, and one of a single token
LENGTHS = (3, 9, 5, 1, 7, 4)


class ExitsByContent(ExitRule):
    """Exits drawn from the largest entry of the first state, which rounding does not change: as good as random."""

    def __call__(self, step, memory):
        exit_loops = step.state.argmax(dim=-1) % NUM_LOOPS + 1
        if memory is not None:
            exit_loops = torch.where(step.loops[:, None] > 1, memory, exit_loops)
        return step.loops[:, None] >= exit_loops, exit_loops


def prompts(lengths=LENGTHS) -> list[torch.Tensor]:
    return [random_ids(1, length, seed)[0] for seed, length in enumerate(lengths)]


def alone(model, prompt: torch.Tensor, **options) -> list[int]:
    return model.generate(prompt[None], **options)[0, len(prompt) :].tolist()


def check(model, options: dict, max_batch_rows: int = 2, **kwargs) -> list:
    sequences = model.generate_depth_batch(prompts(), max_batch_rows=max_batch_rows, **options, **kwargs)
    for prompt, sequence in zip(prompts(), sequences, strict=True):
        assert sequence.tokens == alone(model, prompt, **options)
        assert len(sequence.exit_loops) == len(sequence.tokens)
    return sequences


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_exits_give_what_generate_gives(variant):
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS[variant])
    sequences = check(model, {**GREEDY, "exit_criterion": ExitsByContent()})
    assert len({loops for sequence in sequences for loops in sequence.exit_loops}) > 2


@pytest.mark.parametrize("variant", ["plain", "prelude and coda"])
@pytest.mark.parametrize("criterion", RULES)
def test_rules(variant, criterion):
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS[variant])
    check(model, {**GREEDY, "exit_criterion": criterion, "exit_threshold": RULES[criterion]})


def test_the_gate_and_min_loops():
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["exit gate"])
    sequences = check(model, {**GREEDY, "exit_criterion": "gate", "exit_threshold": 0.3, "min_loops": 2})
    assert all(loops >= 2 for sequence in sequences for loops in sequence.exit_loops)


@pytest.mark.parametrize("num_loops", [1, 2, 6])
def test_fixed_depth(num_loops):
    model = tiny_looped(num_loops=3, **VARIANTS["damped"])
    sequences = check(model, {**GREEDY, "num_loops": num_loops})
    assert {loops for sequence in sequences for loops in sequence.exit_loops} == {num_loops}
    sequences = model.with_num_loops(num_loops).generate_depth_batch(prompts(), **GREEDY)
    assert sequences[0].tokens == alone(model, prompts()[0], **GREEDY, num_loops=num_loops)


@pytest.mark.parametrize(("max_batch_rows", "max_sequences"), [(1, 1), (1, 3), (4, 4), (16, None)])
def test_any_number_of_rows(max_batch_rows, max_sequences):
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["prelude and coda"])
    options = {**GREEDY, "exit_criterion": ExitsByContent()}
    check(model, options, max_batch_rows=max_batch_rows, max_sequences=max_sequences)


def test_sequences_end_at_different_times():
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["prelude and coda"])
    options = {**GREEDY, "max_new_tokens": 12, "exit_criterion": ExitsByContent()}
    free = [alone(model, prompt, **options) for prompt in prompts()]
    ends = [tokens[number] for number, tokens in enumerate(free[:4])]
    sequences = check(model, {**options, "eos_token_id": ends})
    assert len({len(sequence.tokens) for sequence in sequences}) > 2


def test_sampling_depends_on_no_neighbour():
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["prelude and coda"])
    options = {
        **GREEDY, "do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3,
        "exit_criterion": ExitsByContent(),
    }  # fmt: skip
    for max_batch_rows in (2, 16):
        sequences = model.generate_depth_batch(prompts(), max_batch_rows=max_batch_rows, seed=5, **options)
        for number, (prompt, sequence) in enumerate(zip(prompts(), sequences)):
            torch.manual_seed(5 + number)
            assert sequence.tokens == alone(model, prompt, **options)


@pytest.mark.parametrize("model_type", ["qwen3", "olmo2", "gemma", "deepseek_v3", "gpt2", "mixtral"])
def test_other_decoders(model_type):
    model = tiny_looped(model_type, num_loops=NUM_LOOPS, num_prelude_layers=1, num_coda_layers=1)
    check(model, {**GREEDY, "exit_criterion": ExitsByContent()})


def test_eager_attention():
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["prelude and coda"])
    model.set_attn_implementation("eager")
    check(model, {**GREEDY, "exit_criterion": ExitsByContent()})


def test_skipped_loops_are_skipped_calls():
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["prelude and coda"])
    rows = {"core": [], "coda": []}
    for name, layer in (("core", 1), ("coda", 3)):
        model.model.backbone.layers[layer].register_forward_hook(
            lambda module, args, output, name=name: rows[name].append(args[0].shape[:2])
        )
    sequences = model.generate_depth_batch(prompts(), max_batch_rows=2, **GREEDY, exit_criterion=ExitsByContent())
    num_calls = {name: sum(batch for batch, tokens in shapes if tokens == 1) for name, shapes in rows.items()}
    # prompts are read by the model itself, and that of one token looks like a call
    assert (
        num_calls["core"] == sum(sum(sequence.exit_loops[1:]) for sequence in sequences) + sequences[3].exit_loops[0]
    )
    assert num_calls["coda"] == sum(len(sequence.tokens) - 1 for sequence in sequences) + 1


def test_the_block_keeps_what_it_was_given():
    """Against a dictionary of `(row, loop, position)`."""
    config = LlamaConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=11)
    model = LoopedForCausalLM(LoopedConfig(backbone_config=config, num_prelude_layers=1, num_loops=3))
    schedule, core = model.config.depth(), model.config.depth().core_calls(0)[0]
    block = DepthBlock(schedule, num_rows=2, num_loops=3, max_length=4)
    kept = {}
    for row in range(2):
        cache = model(torch.arange(row + 1)[None], use_cache=True).cache
        block.write_prompt(row, cache, 0, row + 1)
        for loop in range(3):
            keys = cache.layers[schedule.core_calls(loop)[0].slot].keys
            kept |= {(row, loop, position): keys[0, :, position] for position in range(row + 1)}
    # row 0 is at position 1 and loop 2, row 1 at position 2 and loop 0, where it exits
    batch = BlockRows(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([2, 0]), 3)
    new = torch.randn(2, 2, 1, 4)
    keys, values = block.view(core, batch).update(new, -new, 0)
    kept |= {(0, 2, 1): new[0, :, 0]} | {(1, loop, 2): new[1, :, 0] for loop in range(3)}
    block.fill_later_loops(batch._replace(loops=torch.tensor([3, 1])))
    assert torch.equal(keys[0, :, :2], torch.stack([kept[0, 2, 0], kept[0, 2, 1]], dim=1))
    assert torch.equal(values[1, :, 2], -new[1, :, 0])
    for loop in range(3):
        whole = BlockRows(torch.tensor([1]), torch.tensor([3]), torch.tensor([loop]), 4)
        keys, _ = block.view(core, whole).update(new[:1], new[:1], 0)
        assert torch.equal(keys[0, :, :3], torch.stack([kept[1, loop, position] for position in range(3)], dim=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_rows": 0}, "`max_batch_rows`"),
        ({"max_sequences": 0}, "`max_sequences`"),
        ({"max_new_tokens": None}, "`max_new_tokens`"),
        ({"num_beams": 2}, "beam"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"stop_strings": "x"}, "stop_strings='x'"),
        ({"cache_policy": "last_loop"}, "cache_policy='last_loop'"),
        ({"exit_criterion": "kll"}, "did you mean 'kl'"),
        ({"exit_criterion": "gate"}, "exit_gate"),
        ({"min_loops": 2}, "`exit_criterion`"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask"),
        ({"prompts": [[3, 4], []]}, r"prompts\[1\]"),
        ({"prompts": [[[3, 4]]]}, r"prompts\[0\]"),
    ],
    ids=str,
)
def test_refused(options, message):
    options = {"prompts": [[3, 4]], **GREEDY, **options}
    with pytest.raises(ValueError, match=message):
        tiny_looped().generate_depth_batch(**options)


@pytest.mark.parametrize(
    ("model_type", "schedule", "message"),
    [
        ("mistral", {}, "sliding_window"),
        ("gemma3_text", {}, "sliding_attention"),
        ("bloom", {}, "bloom"),
        ("qwen3_next", {}, "linear_attention"),
        ("llama", {"loop_lora_rank": 2}, "loop_lora_rank"),
    ],
)
def test_refused_models(model_type, schedule, message):
    with pytest.raises(ValueError, match=message):
        tiny_looped(model_type, **schedule).generate_depth_batch([[3, 4]], **GREEDY)


def test_no_prompts():
    assert tiny_looped().generate_depth_batch([], **GREEDY) == []
