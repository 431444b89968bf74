"""The sleep family against the shared tester, against its backbones, and against its schedule written out."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from hf_loop import SleepConfig, SleepForCausalLM, SleepModel
from hf_loop.models.sleep_passes import SleepPasses
from hf_loop.models.sleep_states import PassStates

from .model_tester import CausalModelTester, left_pad, random_ids
from .sleep_variants import HYBRIDS, VARIANTS, WINDOW, make_sleep
from .tiny_backbones import ADD_POSITIONS, AWAKE, EMBED_TOKENS, FAST_WEIGHTS, MODEL_TYPES, tiny_backbone


INPUT_IDS = random_ids(2, 14)
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


class SleepTester(CausalModelTester):
    DEPTHS = ({"num_sleep_passes": 1}, {}, {"num_sleep_passes": 3})
    SCHEDULE: dict = {}

    def make_model(self, **overrides):
        return make_sleep(**{**self.SCHEDULE, **overrides})

    def make_cache(self, model, depth):
        return DynamicCache(config=model.config)


class TestOlmoHybrid(SleepTester):
    SCHEDULE = VARIANTS["olmo_hybrid"]


class TestQwen35(SleepTester):
    SCHEDULE = VARIANTS["qwen3_5_text"]


class TestQwen3Next(SleepTester):
    SCHEDULE = VARIANTS["qwen3_next"]


class TestInserted(SleepTester):
    SCHEDULE = VARIANTS["inserted"]


class TestInsertedSlidingAttention(SleepTester):
    SCHEDULE = VARIANTS["inserted, sliding attention"]


class TestSlidingEviction(SleepTester):
    SCHEDULE = VARIANTS["sliding eviction"]


class TestMiddleLayers(SleepTester):
    SCHEDULE = VARIANTS["middle layers"]


class TestKeptConvolution(SleepTester):
    SCHEDULE = VARIANTS["first layers, kept convolution"]


class TestSlidingEvictionMiddleLayers(SleepTester):
    SCHEDULE = VARIANTS["sliding eviction, middle layers"]


class TestAbsolutePositions(SleepTester):
    SCHEDULE = VARIANTS["absolute positions"]


class TestHebbian(SleepTester):
    SCHEDULE = VARIANTS["hebbian"]


class TestDelta(SleepTester):
    SCHEDULE = VARIANTS["delta"]


class TestOja(SleepTester):
    SCHEDULE = VARIANTS["oja"]


@pytest.fixture(params=VARIANTS, ids=str)
def model(request):
    return make_sleep(**VARIANTS[request.param])


def make_pair(model_type: str, **fields):
    """A base model with larger than default weights, and the sleep model with the same weights."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(tiny_backbone(model_type)).eval()
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    model = SleepForCausalLM(SleepConfig(backbone_config=base.config, **fields)).eval()
    model.model.backbone = base.base_model
    model.lm_head = base.get_output_embeddings()
    return base, model


@pytest.mark.parametrize(
    "model_type", [name for name in MODEL_TYPES if name not in [*EMBED_TOKENS, *ADD_POSITIONS, *AWAKE]]
)
@torch.no_grad()
def test_one_window_is_the_base_model_bit_for_bit(model_type):
    """A freshly inserted layer changes nothing, and neither do passes that come after the tokens are predicted."""
    base, model = make_pair(model_type, sleep_window=16)
    for input_ids in (random_ids(2, 5), random_ids(2, 16)):
        expected = base(input_ids, use_cache=False).logits
        for num_sleep_passes in (1, 3):
            logits = model(input_ids, use_cache=False, num_sleep_passes=num_sleep_passes).logits
            assert torch.equal(logits, expected)


@pytest.mark.parametrize("model_type", FAST_WEIGHTS)
@torch.no_grad()
def test_every_hybrid_that_sleeps_remembers_the_first_window(model_type):
    _, model = make_pair(model_type, sleep_window=4)
    input_ids = random_ids(2, 14)
    changed = input_ids.clone()
    changed[:, 1] = (changed[:, 1] + 1) % 90 + 3
    before, after = (model(ids, use_cache=False).logits for ids in (input_ids, changed))
    # nothing but rounding where it forgets
    assert (before[:, 4] - after[:, 4]).abs().max() > 1e-5


@pytest.mark.parametrize("model_type", AWAKE)
def test_a_hybrid_that_cannot_sleep_is_refused(model_type):
    with pytest.raises(ValueError, match=f"{model_type}.*cannot sleep|must be among .* of a {model_type} backbone"):
        make_pair(model_type, sleep_window=4)


def reference_windows(model, input_ids: torch.Tensor, num_passes: int) -> list[torch.Tensor]:
    """Algorithm 1 written out for a hybrid whose layers all sleep, on the backbone's own modules: logits by window."""
    backbone = model.model.backbone
    states: dict[int, torch.Tensor] = {}
    logits = []
    for window in input_ids.split(model.config.sleep_window, dim=1):
        hidden_states = backbone.embed_tokens(window)
        for number in range(num_passes):
            cache = DynamicCache(config=backbone.config)
            for index, state in states.items():
                # transformers' cache gives no fast weights without a convolution, which starts anew
                num_channels = backbone.layers[index].linear_attn.conv1d.in_channels
                cache.update_conv_state(torch.zeros(len(state), num_channels, 4), index)
                cache.update_recurrent_state(state, index)
            # through the whole backbone, with what comes before its final norm taken by a hook
            taken = []
            hook = backbone.layers[-1].register_forward_hook(lambda _, __, output, taken=taken: taken.append(output))
            normed = backbone(
                inputs_embeds=hidden_states, past_key_values=cache, position_ids=torch.arange(window.shape[1])[None]
            ).last_hidden_state
            hook.remove()
            hidden_states = taken[0]
            states = {
                index: layer.recurrent_states[0].clone()
                for index, layer in enumerate(cache.layers)
                if hasattr(layer, "recurrent_states")
            }
            if number == 0:
                logits.append(model.lm_head(normed))
    return logits


@pytest.mark.parametrize("num_passes", [1, 2, 3])
@pytest.mark.parametrize("model_type", HYBRIDS)
@torch.no_grad()
def test_the_forward_pass_equals_the_schedule_written_out(model_type, num_passes):
    model = make_sleep(model_type)
    expected = torch.cat(reference_windows(model, INPUT_IDS, num_passes), dim=1)
    logits = model(INPUT_IDS, num_sleep_passes=num_passes, use_cache=False).logits
    torch.testing.assert_close(logits, expected, **CLOSE)
    assert not torch.allclose(logits, model(INPUT_IDS, num_sleep_passes=num_passes + 1, use_cache=False).logits)


@torch.no_grad()
def test_a_window_is_predicted_before_it_is_slept_over(model):
    """The number of passes changes nothing in the first window, and something in all later ones."""
    once, often = (model(INPUT_IDS, num_sleep_passes=passes, use_cache=False).logits for passes in (1, 3))
    assert torch.equal(once[:, :WINDOW], often[:, :WINDOW])
    for start in (WINDOW, 2 * WINDOW, 3 * WINDOW):
        assert not torch.allclose(once[:, start : start + 1], often[:, start : start + 1], atol=1e-4)


@pytest.mark.parametrize("num_passes", [1, 3])
@torch.no_grad()
def test_later_tokens_change_nothing_before_them(model, num_passes):
    changed = INPUT_IDS.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 90 + 3
    before, after = (model(ids, num_sleep_passes=num_passes, use_cache=False).logits for ids in (INPUT_IDS, changed))
    torch.testing.assert_close(before[:, :9], after[:, :9], **CLOSE)
    assert not torch.allclose(before[:, 12], after[:, 12], atol=1e-4)


@torch.no_grad()
def test_the_first_window_is_remembered(model):
    changed = INPUT_IDS.clone()
    changed[:, 1] = (changed[:, 1] + 1) % 90 + 3
    before, after = (model(ids, use_cache=False).logits for ids in (INPUT_IDS, changed))
    assert not torch.allclose(before[:, -1], after[:, -1], atol=1e-4)


@pytest.mark.parametrize("name", [name for name, schedule in VARIANTS.items() if "eviction" not in schedule])
@torch.no_grad()
def test_no_keys_and_values_cross_a_hard_border(name):
    """Nothing is left of them after a window has filled, and what a layer was handed before is not read again."""
    model = make_sleep(**VARIANTS[name])
    cache = model(INPUT_IDS[:, : 2 * WINDOW], use_cache=True).past_key_values
    assert all(layer.state.keys is None and layer.state.values is None for layer in cache.layers[1:])

    cache = model(INPUT_IDS[:, :6], use_cache=True).past_key_values
    assert {layer.state.keys.shape[2] for layer in cache.layers[1:] if layer.state.keys is not None} == {2}
    expected = model(INPUT_IDS, use_cache=False).logits[:, 6:]
    poisoned = 0
    for layer in cache.layers[1:]:
        if layer.state.keys is not None:
            poisoned += 1
            # two more columns, as if the window before had left them: a row's length says they are not its own
            poison = torch.full_like(layer.state.keys, 1e4)
            keys, values = (torch.cat([poison, tensor], dim=2) for tensor in layer.state[:2])
            layer.state = layer.state._replace(keys=keys, values=values)
    assert poisoned
    torch.testing.assert_close(model(INPUT_IDS[:, 6:], past_key_values=cache).logits, expected, **CLOSE)


@pytest.fixture
def poisoned_keys(monkeypatch):
    """Every key and value that a layer computed becomes NaN, where it lies, as soon as its window has been slept over.
    The number of tensors of each sleep."""
    seen, counts = [], []
    update, sleep = PassStates.update, SleepPasses.sleep

    def record(self, key_states, value_states, layer_idx, *args, **kwargs):
        joined = update(self, key_states, value_states, layer_idx, *args, **kwargs)
        seen.extend((key_states, value_states, *joined))
        return joined

    def poison(self, *args, **kwargs):
        states = sleep(self, *args, **kwargs)
        counts.append(len(seen))
        while seen:
            seen.pop().fill_(float("nan"))
        return states

    monkeypatch.setattr(PassStates, "update", record)
    monkeypatch.setattr(SleepPasses, "sleep", poison)
    return counts


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("name", [name for name, schedule in VARIANTS.items() if "eviction" not in schedule])
@torch.no_grad()
def test_poisoned_keys_and_values_are_never_read_again(name, use_cache, request):
    model = make_sleep(**VARIANTS[name])
    expected = model(INPUT_IDS, use_cache=use_cache).logits
    counts = request.getfixturevalue("poisoned_keys")
    assert torch.equal(model(INPUT_IDS, use_cache=use_cache).logits, expected)
    assert len(counts) >= 3 and all(counts)


@torch.no_grad()
def test_the_poison_works(poisoned_keys):
    """With sliding eviction keys and values do cross the border."""
    assert make_sleep(**VARIANTS["sliding eviction"])(INPUT_IDS, use_cache=False).logits.isnan().any()


@torch.no_grad()
def test_with_sliding_eviction_every_token_sees_as_many():
    """Poison in the fast weights' stead: with them cut off, what a token sees is the last `sleep_window` tokens."""
    model = make_sleep(fast_weight_layers=[3], eviction="sliding", sleep_window=WINDOW)
    model.model.memory_layers[0].o_proj.weight.zero_()
    changed = INPUT_IDS.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 90 + 3
    outputs = [model.model(ids, use_cache=False, output_hidden_states=False) for ids in (INPUT_IDS, changed)]
    differs = (outputs[0].last_hidden_state - outputs[1].last_hidden_state).abs().amax((0, 2)) > 1e-6
    # four layers of windows of four reach twelve tokens further
    assert differs.tolist() == [False] * 5 + [True] * 9
    one_layer = SleepConfig(
        backbone_config=tiny_backbone("llama", num_hidden_layers=1), eviction="sliding", sleep_window=WINDOW
    )
    torch.manual_seed(0)
    model = SleepForCausalLM(one_layer).eval()
    before, after = (model(ids, use_cache=False, num_sleep_passes=1).logits for ids in (INPUT_IDS, changed))
    assert ((before - after).abs().amax((0, 2)) > 1e-6).tolist() == [False] * 5 + [True] * 4 + [False] * 5


@torch.no_grad()
def test_one_pass_with_sliding_eviction_is_sliding_window_attention():
    """N = 1 and no fast weights: a backbone with sliding windows of its own."""
    backbone_config = tiny_backbone("mistral", sliding_window=WINDOW)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(backbone_config).eval()
    plain = tiny_backbone("mistral", sliding_window=None)
    model = SleepForCausalLM(SleepConfig(backbone_config=plain, eviction="sliding", sleep_window=WINDOW)).eval()
    model.model.backbone.load_state_dict(base.model.state_dict())
    model.lm_head.load_state_dict(base.lm_head.state_dict())
    logits = model(INPUT_IDS, num_sleep_passes=1, use_cache=False).logits
    torch.testing.assert_close(logits, base(INPUT_IDS, use_cache=False).logits, **CLOSE)


@torch.no_grad()
def test_packed_documents_have_fast_weights_of_their_own(model):
    documents = [random_ids(1, length, length) for length in (9, 3, 6)]
    position_ids = torch.cat([torch.arange(document.shape[1]) for document in documents])[None]
    packed = model(torch.cat(documents, dim=1), position_ids=position_ids, use_cache=False).logits
    alone = torch.cat([model(document, use_cache=False).logits for document in documents], dim=1)
    torch.testing.assert_close(packed, alone, **CLOSE)


@torch.no_grad()
def test_padding_may_be_anywhere(model):
    rows = [random_ids(1, length, length)[0] for length in (12, 5)]
    for use_cache in (False, True):
        input_ids = torch.zeros(2, 15, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        places = torch.tensor([0, 2, 3, 5, 6, 7, 8, 9, 10, 11, 13, 14])
        for index, (row, place) in enumerate(zip(rows, (places, torch.arange(5) + 2))):
            input_ids[index, place], attention_mask[index, place] = row, 1
            logits = model(input_ids, attention_mask=attention_mask, use_cache=use_cache).logits
        for index, (row, place) in enumerate(zip(rows, (places, torch.arange(5) + 2))):
            torch.testing.assert_close(logits[index, place], model(row[None]).logits[0], **CLOSE)


def test_slots_and_defaults(tmp_path):
    config = make_sleep("qwen3_5_text").config
    assert (config.memory_layers, config.num_hidden_layers) == ([], 5)
    assert SleepConfig(backbone_config=tiny_backbone("llama")).memory_layers == [3]
    assert SleepConfig(backbone_config=tiny_backbone("llama", num_hidden_layers=2)).memory_layers == [1]
    config = make_sleep(fast_weight_layers=[0, 2], eviction="sliding").config
    assert config.layer_types == ["sleep_window"] + ["sleep_state"] * 6
    assert (config.restarts_positions, SleepConfig().restarts_positions) == (False, True)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path, num_sleep_passes=5)
    assert (loaded.num_sleep_passes, loaded.num_hidden_layers, loaded.memory_layers) == (5, 7, [0, 2])
    assert len(DynamicCache(config=loaded).layers) == 7
    assert "num_hidden_layers" not in loaded.to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sleep_window": 0}, "`sleep_window` must be an integer of at least 1, got 0"),
        ({"num_sleep_passes": 1.5}, "num_sleep_passes"),
        ({"num_backprop_windows": 0}, "num_backprop_windows"),
        ({"eviction": "soft"}, "eviction"),
        ({"sleep_layers": [2, 2]}, r"`sleep_layers` must be \[start, end\] .* got \[2, 2\]"),
        ({"sleep_layers": [0, 5]}, r"`sleep_layers` must be"),
        ({"sleep_layers": [1]}, r"`sleep_layers` must be"),
        ({"fast_weight_layers": []}, "must have one of the layers"),
        ({"fast_weight_layers": [0], "sleep_layers": [1, 4]}, "must have one of the layers"),
        ({"fast_weight_layers": [4]}, "`fast_weight_layers` must be different layers of the backbone, 0 to 3"),
        ({"fast_weight_layers": [2, 1]}, "in ascending order"),
        ({"fast_weight_rule": "momentum"}, "fast_weight_rule"),
        ({"eviction": "sliding", "position_mode": "restart"}, "`position_mode` must be 'absolute'"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SleepConfig(**{"backbone_config": tiny_backbone("llama"), **fields})


def test_backbones_that_cannot_sleep_are_refused():
    with pytest.raises(ValueError, match="'parcae_backbone' cannot sleep"):
        SleepForCausalLM(SleepConfig(backbone_config=tiny_backbone("parcae_backbone")))


@pytest.mark.parametrize("num_passes", [0, -1, 2.5, "x", True])
def test_bad_numbers_of_passes_are_refused(num_passes):
    model = make_sleep()
    with pytest.raises(ValueError, match="`num_sleep_passes`"):
        model(INPUT_IDS, num_sleep_passes=num_passes)
    with pytest.raises(ValueError, match="`num_sleep_passes`"):
        model.generate(INPUT_IDS, num_sleep_passes=num_passes)
    with pytest.raises(ValueError, match="`num_passes`"):
        model.sleep(model(INPUT_IDS, use_cache=True).past_key_values, num_passes=num_passes)


def test_the_model_without_a_head(tmp_path):
    model = make_sleep("qwen3_next")
    model.model.save_pretrained(tmp_path)
    loaded = SleepModel.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model.model(INPUT_IDS).last_hidden_state
        assert torch.equal(loaded(INPUT_IDS).last_hidden_state, expected)


@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_weights_stay_shared(tie_word_embeddings, tmp_path):
    model = make_sleep(tie_word_embeddings=tie_word_embeddings)
    model.save_pretrained(tmp_path)
    loaded = SleepForCausalLM.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tie_word_embeddings
    model.resize_token_embeddings(120)
    assert model.config.vocab_size == 120
    assert model(INPUT_IDS).logits.shape[-1] == 120


@torch.no_grad()
def test_hidden_states_are_those_of_the_tokens(model):
    """One entry per layer, whatever was run how often, in windows and in padded batches."""
    rows = [random_ids(1, length, length)[0] for length in (11, 6)]
    input_ids, attention_mask = left_pad(rows)
    for use_cache in (False, True):
        outputs = model(input_ids, attention_mask=attention_mask, use_cache=use_cache, output_hidden_states=True)
        assert [tuple(states.shape) for states in outputs.hidden_states] == [(2, 11, 64)] * 5
        for index, row in enumerate(rows):
            alone = model(row[None], output_hidden_states=True, use_cache=False).hidden_states
            for batched, expected in zip(outputs.hidden_states, alone):
                torch.testing.assert_close(batched[index, -len(row) :], expected[0], **CLOSE)
