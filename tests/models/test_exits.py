"""Exit rules: what each looks at, and that exits change nothing but what a token's own exit changes."""

import copy
import dataclasses
import math

import pytest
import torch
from transformers import DynamicCache

from hf_loop import ExitRule, GivenExits, LoopCache
from hf_loop.models.exits import RULES, LoopStep

from .looped_variants import VARIANTS, tiny_looped
from .model_tester import random_ids


NUM_LOOPS = 5
LOGIT_RULES = [name for name, rule in RULES.items() if rule.needs_logits]
# one that lets some tokens of the tiny models exit early and others late
THRESHOLDS = {"state_change": 0.29, "kl": 0.003, "stable_argmax": 3, "entropy": 4.527}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def step(state, previous=None, loops=1, logits=None, gate=None) -> LoopStep:
    loops = torch.full(state.shape[:1], loops)
    return LoopStep(loops, state, state if previous is None else previous, lambda: logits, lambda: gate)


def random_exits(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, NUM_LOOPS + 1, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["prelude and coda", "concat", "final norm", "damped"])
def model(request):
    return tiny_looped(num_loops=NUM_LOOPS, **VARIANTS[request.param])


def test_state_change_is_relative():
    previous = torch.randn(2, 3, 8)
    change = torch.randn(2, 3, 8)
    change *= previous.norm(dim=-1, keepdim=True) / change.norm(dim=-1, keepdim=True)
    rule = RULES["state_change"](0.1)
    for scale in (1e-3, 1.0, 1e3):
        done, _ = rule(step(scale * (previous + 0.05 * change), scale * previous), None)
        assert done.all()
        done, _ = rule(step(scale * (previous + 0.2 * change), scale * previous), None)
        assert not done.any()


def test_divergence_compares_successive_predictions():
    first, second = torch.randn(2, 2, 3, 11).unbind(0)
    rule = RULES["kl"](math.inf)
    done, memory = rule(step(first, logits=first), None)
    assert not done.any()
    expected = torch.nn.functional.kl_div(
        first.log_softmax(-1), second.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    rule.threshold = expected.median().item()
    done, _ = rule(step(second, loops=2, logits=second), memory)
    assert torch.equal(done, expected < rule.threshold)


def test_argmax_is_counted_over_loops():
    rule, memory, best = RULES["stable_argmax"](3), None, [1, 2, 2, 2, 5]
    for loop, token in enumerate(best):
        logits = torch.nn.functional.one_hot(torch.tensor([[token]]), 7).float()
        done, memory = rule(step(logits, loops=loop + 1, logits=logits), memory)
        assert done.item() == (loop == 3)


def test_gate_adds_up_the_probabilities_to_exit():
    rule, memory, goes_on, total = RULES["gate"](0.6), None, 1.0, 0.0
    for loop, gate in enumerate([0.2, 0.3, 0.4, 0.1]):
        total += gate * goes_on
        goes_on *= 1 - gate
        done, memory = rule(step(torch.zeros(1, 1, 4), loops=loop + 1, gate=torch.full((1, 1), gate)), memory)
        assert done.item() == (total > 0.6)
    assert total > 0.6


def test_rules_forget_the_token_before_at_its_successors_first_loop():
    logits = torch.randn(1, 1, 9)
    for name in ("kl", "stable_argmax"):
        rule = RULES[name](THRESHOLDS[name])
        _, memory = rule(step(logits, loops=4, logits=logits), None)
        assert not rule(step(logits, loops=1, logits=logits), memory)[0].any()


@pytest.mark.parametrize("criterion", THRESHOLDS)
def test_tokens_exit_at_different_loops(criterion):
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["damped"])
    exit_loops = model(random_ids(4, 11), exit_criterion=criterion, exit_threshold=THRESHOLDS[criterion]).exit_loops
    assert len(exit_loops.unique()) > 1, exit_loops


@pytest.mark.parametrize(
    ("criterion", "threshold"), [("state_change", 0), ("kl", 0), ("entropy", 0), ("stable_argmax", math.inf)]
)
def test_a_threshold_that_never_fires_is_fixed_depth(model, criterion, threshold):
    ids = random_ids(3, 9)
    outputs = model(ids, exit_criterion=criterion, exit_threshold=threshold)
    assert torch.equal(outputs.logits, model(ids).logits)
    assert (outputs.exit_loops == NUM_LOOPS).all() and (outputs.num_loops == NUM_LOOPS).all()


@pytest.mark.parametrize("num_loops", range(1, NUM_LOOPS + 1))
def test_all_tokens_exiting_at_one_loop_is_that_many_loops(num_loops):
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["prelude and coda"])
    ids = random_ids(2, 9)
    outputs = model(ids, exit_criterion=GivenExits(torch.full(ids.shape, num_loops)))
    torch.testing.assert_close(outputs.logits, model(ids, num_loops=num_loops).logits)


def naive_exits(model, ids: torch.Tensor, exit_loops: torch.Tensor) -> torch.Tensor:
    """One row, token by token: every token runs at its own fixed depth, and its last keys and values are copied."""
    schedule = model.config.depth()
    cache, logits = DynamicCache(config=model.config), []
    for token in range(ids.shape[1]):
        num_loops = int(exit_loops[0, token])
        short = DynamicCache(config=model.config.with_num_loops(num_loops))
        short.layers = cache.layers[: len(short.layers)]
        outputs = model(ids[:, token : token + 1], past_key_values=short, num_loops=num_loops, use_cache=True)
        logits.append(outputs.logits)
        for loop in range(num_loops, model.config.num_loops):
            for call, last in zip(schedule.core_calls(loop), schedule.core_calls(num_loops - 1)):
                layer, deepest = cache.layers[call.slot], cache.layers[last.slot]
                layer.update(deepest.keys[:, :, -1:], deepest.values[:, :, -1:])
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("variant", ["plain", "prelude and coda", "concat", "final norm", "before the coda"])
@pytest.mark.parametrize("seed", range(3))
def test_exits_are_those_of_the_naive_twin(variant, seed):
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS[variant])
    ids, exit_loops = random_ids(3, 8, seed), random_exits(3, 8, seed)
    outputs = model(ids, exit_criterion=GivenExits(exit_loops))
    assert torch.equal(outputs.exit_loops, exit_loops)
    for row in range(3):
        expected = naive_exits(model, ids[row : row + 1], exit_loops[row : row + 1])
        torch.testing.assert_close(outputs.logits[row : row + 1], expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("cache_policy", ["own", "last_loop", "cyclic:2", "window:3"])
@pytest.mark.parametrize("criterion", THRESHOLDS)
def test_a_batch_is_its_rows_alone_with_any_padding(criterion, cache_policy):
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["damped"])
    ids, num_padding = random_ids(3, 9), [0, 4, 7]
    mask = torch.tensor([[0] * n + [1] * (9 - n) for n in num_padding])
    options = {
        "exit_criterion": criterion, "exit_threshold": THRESHOLDS[criterion], "cache_policy": cache_policy,
        "use_cache": True,
    }  # fmt: skip
    together, cache = [], None
    for part in (slice(0, 8), slice(8, 9)):
        outputs = model(
            ids[:, part], attention_mask=mask[:, : part.stop], past_key_values=cache, **options,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, part],
        )  # fmt: skip
        cache = outputs.past_key_values
        together.append(outputs)
    for row, n in enumerate(num_padding):
        cache = None
        for part, outputs in zip((slice(n, 8), slice(8, 9)), together):
            alone = model(ids[row : row + 1, part], past_key_values=cache, **options)
            cache = alone.past_key_values
            length = alone.logits.shape[1]
            torch.testing.assert_close(outputs.logits[row, -length:], alone.logits[0], atol=2e-5, rtol=1e-5)
            assert torch.equal(outputs.exit_loops[row, -length:], alone.exit_loops[0])


@pytest.mark.parametrize("variant", ["plain", "prelude and coda", "concat", "final norm", "damped"])
@pytest.mark.parametrize("criterion", THRESHOLDS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"prefill_chunk_size": 4}], ids=str)
def test_generation_with_a_cache_is_that_without(variant, criterion, options):
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS[variant])
    if criterion in LOGIT_RULES and model.config.num_coda_layers:
        pytest.skip("the coda of a token reads what the other tokens of its pass are at the same loop")
    options |= {**GREEDY, "exit_criterion": criterion, "exit_threshold": THRESHOLDS[criterion]}
    prompt = random_ids(3, 7)
    cached = model.generate(prompt, **options)
    options.pop("prefill_chunk_size", None)
    assert torch.equal(cached, model.generate(prompt, **options, use_cache=False))


def test_rows_leave_the_batch():
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["prelude and coda"])
    exit_loops, sizes = torch.tensor([[1], [3], [2]]), []
    model.model.backbone.layers[1].register_forward_hook(lambda module, args, output: sizes.append(args[0].shape[0]))
    model(random_ids(3, 1), exit_criterion=GivenExits(exit_loops))
    assert sizes == [3, 2, 1]


def test_exits_come_from_the_generation_configuration_too():
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["damped"])
    prompt, settings = random_ids(2, 7), {"exit_criterion": "state_change", "exit_threshold": 0.29, "min_loops": 2}
    config = copy.deepcopy(model.generation_config)
    for name, value in settings.items():
        setattr(config, name, value)
    expected = model.generate(prompt, **GREEDY, **settings)
    assert torch.equal(model.generate(prompt, generation_config=config, **GREEDY), expected)
    plain = model.generate(prompt, **GREEDY, output_logits=True, return_dict_in_generate=True).logits
    exited = model.generate(prompt, **GREEDY, **settings, output_logits=True, return_dict_in_generate=True).logits
    assert not torch.equal(plain[0], exited[0])


@pytest.mark.parametrize(
    "options",
    [{}, {"exit_criterion": "state_change"}, {"contrast_loop": 1}, {"output_loop_states": True}, {"use_cache": True}],
    ids=str,
)
def test_outputs_come_in_the_order_of_their_fields(options):
    outputs = tiny_looped().model(random_ids(1, 4), **options)
    order = [field.name for field in dataclasses.fields(outputs)]
    assert list(outputs.keys()) == sorted(outputs.keys(), key=order.index)
    assert torch.equal(outputs[0], outputs.last_hidden_state)


def test_min_loops():
    model = tiny_looped(num_loops=NUM_LOOPS)
    outputs = model(random_ids(2, 5), exit_criterion="state_change", exit_threshold=100, min_loops=3)
    assert (outputs.exit_loops == 3).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exit_criterion": "kll"}, "did you mean 'kl'"),
        ({"exit_criterion": 3}, "`exit_criterion`"),
        ({"exit_threshold": 0.1}, "needs an `exit_criterion`"),
        ({"min_loops": 2}, "needs an `exit_criterion`"),
        ({"exit_criterion": "kl", "exit_threshold": -1}, "`exit_threshold`"),
        ({"exit_criterion": "kl", "exit_threshold": float("nan")}, "`exit_threshold`"),
        ({"exit_criterion": "kl", "exit_threshold": True}, "`exit_threshold`"),
        ({"exit_criterion": "gate"}, "exit_gate"),
        ({"exit_criterion": "kl", "min_loops": 9}, "`min_loops`"),
        ({"exit_criterion": "kl", "min_loops": 0}, "`min_loops`"),
        ({"exit_criterion": "kl", "output_loop_states": True}, "exit_criterion"),
        ({"exit_criterion": "kl", "output_loop_logits": True}, "exit_criterion"),
        ({"exit_criterion": "kl", "num_backprop_loops": 1}, "num_backprop_loops"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_looped()(random_ids(1, 4), **options)


def test_a_rule_has_its_own_threshold():
    with pytest.raises(ValueError, match="`exit_threshold`"):
        tiny_looped()(random_ids(1, 4), exit_criterion=GivenExits(torch.ones(1, 4)), exit_threshold=0.1)


def test_rules_that_read_logits_need_a_head():
    for name in LOGIT_RULES:
        with pytest.raises(ValueError, match="language-model head"):
            tiny_looped().model(random_ids(1, 4), exit_criterion=name)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("model_type", ["falcon_h1", "lfm2", "qwen3_next"])
def test_caches_with_states_are_refused(model_type, use_cache):
    """Keys and values of tokens that have exited are kept for later loops; nothing keeps a state in step with them."""
    with pytest.raises(ValueError, match="attention"):
        tiny_looped(model_type)(random_ids(2, 6), exit_criterion="kl", use_cache=use_cache)


@pytest.mark.parametrize("implementation", ["static", "offloaded", "quantized"])
def test_other_caches_are_refused(implementation):
    options = {**GREEDY, "cache_implementation": implementation}
    for own in ({"exit_criterion": "kl"}, {"cache_policy": "last_loop"}):
        with pytest.raises(ValueError, match="cache_implementation"):
            tiny_looped().generate(random_ids(1, 4), **options, **own)


def test_a_users_own_rule():
    class FirstTokens(ExitRule):
        def __call__(self, step, memory):
            done = torch.zeros(step.state.shape[:2], dtype=torch.bool)
            done[:, :2] = step.loops[:, None] >= 2
            return done, None

    model = tiny_looped(num_loops=4)
    assert model(random_ids(1, 4), exit_criterion=FirstTokens()).exit_loops.tolist() == [[2, 2, 4, 4]]


@pytest.mark.parametrize("cache_policy", ["own", "last_loop", "cyclic:2", "cyclic:9", "window:3"])
def test_cache_policies_have_their_number_of_slots(cache_policy):
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["prelude and coda"])
    cache = LoopCache(model.config, cache_policy)
    num_sets = {"last_loop": 1, "cyclic:2": 2}.get(cache_policy, NUM_LOOPS)
    assert len(cache.layers) == 2 + 2 * num_sets
    model(random_ids(2, 7), past_key_values=cache, use_cache=True)
    window = 2 if cache_policy == "window:3" else 7
    lengths = [layer.keys.shape[-2] for layer in cache.layers]
    assert lengths == [7] * 4 + [window] * (len(lengths) - 4)


@pytest.mark.parametrize("cache_policy", ["own", "window:3"])
def test_exact_policies(model, cache_policy):
    prompt = random_ids(3, 7)
    options = {**GREEDY, "cache_policy": cache_policy}
    assert torch.equal(model.generate(prompt, **options), model.generate(prompt, **options, use_cache=False))


def test_last_loop_reads_the_last_loops_past():
    """Against a cache made by hand: every loop's slots hold what the last loop wrote of earlier tokens."""
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["prelude and coda"])
    schedule, ids = model.config.depth(), random_ids(2, 6)
    cache, shared = DynamicCache(config=model.config), None
    for token in range(6):
        part = ids[:, token : token + 1]
        expected = model(part, past_key_values=cache, use_cache=True).logits
        outputs = model(part, past_key_values=shared, use_cache=True, cache_policy="last_loop")
        shared = outputs.past_key_values
        torch.testing.assert_close(outputs.logits, expected, atol=2e-5, rtol=1e-5)
        for loop in range(NUM_LOOPS - 1):
            for call, last in zip(schedule.core_calls(loop), schedule.core_calls(NUM_LOOPS - 1)):
                layer, deepest = cache.layers[call.slot], cache.layers[last.slot]
                layer.keys, layer.values = deepest.keys, deepest.values


@pytest.mark.parametrize("cache_policy", ["last", "last_loop:2", "cyclic", "cyclic:0", "cyclic:x", "window:-1", 7])
def test_unknown_policies_are_refused(cache_policy):
    with pytest.raises(ValueError, match="`cache_policy`"):
        tiny_looped()(random_ids(1, 4), cache_policy=cache_policy)


def test_caches_of_another_policy_or_depth_are_refused():
    model = tiny_looped(num_loops=3)
    cache = LoopCache(model.config, "last_loop")
    with pytest.raises(ValueError, match="'last_loop'"):
        model(random_ids(1, 4), past_key_values=cache, cache_policy="own")
    with pytest.raises(ValueError, match="num_loops=3"):
        model(random_ids(1, 4), past_key_values=cache, num_loops=4)


@pytest.mark.parametrize("model_type", ["gemma3_text", "mistral"])
def test_windows_need_full_attention(model_type):
    with pytest.raises(ValueError, match="full attention"):
        tiny_looped(model_type)(random_ids(1, 4), cache_policy="window:2", use_cache=False)


@pytest.mark.parametrize("model_type", ["qwen3", "gemma3_text", "olmo2", "deepseek_v3", "gpt2", "mixtral"])
def test_exits_and_policies_over_other_decoders(model_type):
    model = tiny_looped(model_type, num_loops=NUM_LOOPS, num_prelude_layers=1, num_coda_layers=1)
    ids, exit_loops = random_ids(2, 8), random_exits(2, 8)
    outputs = model(ids, exit_criterion=GivenExits(exit_loops))
    for row in range(2):
        expected = naive_exits(model, ids[row : row + 1], exit_loops[row : row + 1])
        torch.testing.assert_close(outputs.logits[row : row + 1], expected, atol=5e-5, rtol=1e-5)
    options = {**GREEDY, "exit_criterion": "state_change", "exit_threshold": 0.5}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, **options, use_cache=False))
    assert model.generate(ids, **GREEDY, cache_policy="last_loop").shape == (2, 14)
