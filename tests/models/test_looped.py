"""The looped family against the shared tester, and what is its own: loops as an argument, readouts, shared weights."""

import pytest
import torch
from safetensors import safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    GenerationConfig,
)

from hf_loop import (
    LoopedConfig,
    LoopedForCausalLM,
    LoopedForSequenceClassification,
    LoopedForTokenClassification,
    LoopedModel,
)

from .looped_variants import OWN_LOOPS, VARIANTS, tiny_looped
from .model_tester import CausalModelTester, random_ids
from .tiny_backbones import tiny_backbone


class LoopedTester(CausalModelTester):
    DEPTHS = ({"num_loops": 1}, {}, {"num_loops": 5})
    SCHEDULE: dict = {}

    def make_model(self, **overrides):
        return tiny_looped(**{**self.SCHEDULE, **overrides})

    def make_cache(self, model, depth):
        return DynamicCache(config=model.config.with_num_loops(depth.get("num_loops", model.config.num_loops)))


class TestPlain(LoopedTester):
    SCHEDULE = VARIANTS["plain"]


class TestPreludeAndCoda(LoopedTester):
    SCHEDULE = VARIANTS["prelude and coda"]


class TestAdd(LoopedTester):
    SCHEDULE = VARIANTS["add"]


class TestUnitAdd(LoopedTester):
    SCHEDULE = VARIANTS["unit add"]


class TestConcat(LoopedTester):
    SCHEDULE = VARIANTS["concat"]


class TestDiagonal(LoopedTester):
    SCHEDULE = VARIANTS["diagonal"]


class TestOrthogonal(LoopedTester):
    SCHEDULE = VARIANTS["orthogonal"]


class TestWeightlessNorm(LoopedTester):
    SCHEDULE = VARIANTS["weightless norm"]


class TestLoopNorm(LoopedTester):
    SCHEDULE = VARIANTS["loop norm"]


class TestFinalNorm(LoopedTester):
    SCHEDULE = VARIANTS["final norm"]


class TestExitGate(LoopedTester):
    SCHEDULE = VARIANTS["exit gate"]

    def test_every_parameter_gets_gradient(self):
        model = self.make_model().train()
        input_ids = random_ids(2, 9)
        model(input_ids, labels=input_ids, use_cache=False).loss.backward()
        # the loss of the last loop does not read the gate
        without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert without == ["model.exit_gate.weight", "model.exit_gate.bias"]


class TestDamped(LoopedTester):
    SCHEDULE = VARIANTS["damped"]


class TestQuarterSteps(LoopedTester):
    SCHEDULE = VARIANTS["quarter steps"]


class TestBeforeTheCoda(LoopedTester):
    SCHEDULE = VARIANTS["before the coda"]


class TestSlidingWindows(LoopedTester):
    SCHEDULE = {"model_type": "gemma3_text", "num_prelude_layers": 1, "num_coda_layers": 1}


class TestLinearAttention(LoopedTester):
    SCHEDULE = {"model_type": "qwen3_5_text", "num_prelude_layers": 1, "num_coda_layers": 1}


@pytest.mark.skipif("dory" not in CONFIG_MAPPING, reason="transformers has no dory before 5.24")
class TestDory(LoopedTester):
    SCHEDULE = OWN_LOOPS["dory"]


@pytest.mark.skipif("inkling2_loop_text" not in CONFIG_MAPPING, reason="transformers has none before 5.24")
class TestInkling(LoopedTester):
    SCHEDULE = OWN_LOOPS["inkling2_loop_text"]


@pytest.fixture(params=VARIANTS, ids=str)
def model(request):
    return tiny_looped(**VARIANTS[request.param])


@pytest.mark.parametrize("num_loops", [0, -1, 2.5, "x", True, None])
def test_bad_loop_counts_are_refused(num_loops, tmp_path):
    model = tiny_looped()
    if num_loops is not None:
        with pytest.raises(ValueError, match="num_loops"):
            model(random_ids(1, 3), num_loops=num_loops)
        with pytest.raises(ValueError, match="num_loops"):
            model.generate(random_ids(1, 3), num_loops=num_loops)
        with pytest.raises(ValueError, match="num_backprop_loops"):
            model(random_ids(1, 3), num_backprop_loops=num_loops)
    with pytest.raises(ValueError, match="num_loops"):
        LoopedConfig(num_loops=num_loops)
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_loops"):
        LoopedConfig.from_pretrained(tmp_path, num_loops=num_loops)


@torch.no_grad()
def test_the_loop_count_means_the_same_wherever_it_is_given(model, tmp_path):
    model.save_pretrained(tmp_path)
    input_ids = random_ids(2, 6)
    by_argument = model(input_ids, num_loops=5).logits
    by_config = AutoModelForCausalLM.from_pretrained(tmp_path, num_loops=5)
    assert torch.equal(by_config(input_ids).logits, by_argument)

    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    expected = model.generate(input_ids, num_loops=5, **options)
    assert torch.equal(by_config.generate(input_ids, **options), expected)
    assert torch.equal(model.generate(input_ids, GenerationConfig(num_loops=5, **options)), expected)
    # an argument goes before the generation config
    assert torch.equal(model.generate(input_ids, GenerationConfig(num_loops=2, **options), num_loops=5), expected)


def test_a_saved_generation_config_keeps_its_loop_count(tmp_path):
    model = tiny_looped()
    model.generation_config = GenerationConfig(num_loops=5, max_new_tokens=4, do_sample=False, eos_token_id=None)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    input_ids = random_ids(2, 6)
    assert torch.equal(loaded.generate(input_ids), model.generate(input_ids, num_loops=5))


@torch.no_grad()
def test_readouts_after_every_loop_equal_shorter_runs(model):
    input_ids = random_ids(2, 7)
    outputs = model(input_ids, num_loops=4, output_loop_states=True, output_loop_logits=True)
    assert outputs.num_loops.tolist() == [4, 4]
    assert len(outputs.loop_states) == len(outputs.loop_logits) == 4
    if model.config.loop_update == "replace" or model.config.loop_step is not None:
        # by default a damped step is the smaller the more steps there are: a shorter run is another one from the start
        for loop in range(4):
            assert torch.equal(outputs.loop_logits[loop], model(input_ids, num_loops=loop + 1).logits)
    assert torch.equal(outputs.loop_logits[-1], outputs.logits)
    kept = model(input_ids, num_loops=4, output_loop_logits=True, logits_to_keep=2).loop_logits
    assert all(torch.equal(few, every[:, -2:]) for few, every in zip(kept, outputs.loop_logits))


@torch.no_grad()
def test_the_exit_gate_reads_the_state_through_the_final_norm():
    for loop_norm in ("none", "own", "final"):
        model = tiny_looped(loop_norm=loop_norm, exit_gate=True)
        outputs = model.model(random_ids(2, 7), num_loops=4, output_loop_states=True, output_loop_hidden_states=True)
        for state, hidden_state in zip(outputs.loop_states, outputs.loop_hidden_states, strict=True):
            # without a coda the head reads the same
            logits = model.model.exit_gate(hidden_state)[..., 0]
            assert torch.equal(model.model.exit_gate_probability(state), logits.sigmoid())
            assert torch.equal(model.model.exit_gate_probability(state[:, 3]), logits[:, 3].sigmoid())
    state = model.to(torch.bfloat16)(random_ids(2, 7), output_loop_states=True).loop_states[0]
    assert model.model.exit_gate_probability(state).dtype == torch.float32
    with pytest.raises(ValueError, match="`exit_gate` of the configuration must be True .* got False"):
        tiny_looped().model.exit_gate_probability(state)


def test_hidden_states_have_one_entry_per_layer_call(model):
    model.set_attn_implementation("eager")
    outputs = model(random_ids(1, 5), num_loops=5, output_hidden_states=True, output_attentions=True)
    num_calls = model.config.with_num_loops(5).num_hidden_layers
    assert len(outputs.hidden_states) == num_calls + 1
    assert len(outputs.attentions) == num_calls


def test_a_cache_of_another_loop_count_is_refused():
    model = tiny_looped(num_prelude_layers=1, num_coda_layers=1)
    input_ids = random_ids(1, 4)
    for cache in (DynamicCache(), DynamicCache(config=model.config)):
        model(input_ids, past_key_values=cache, num_loops=3)
        for other in (2, 4):
            with pytest.raises(ValueError, match=f"8 slots but num_loops={other} needs {2 + 2 * other}"):
                model(input_ids, past_key_values=cache, num_loops=other)
    with pytest.raises(ValueError, match="`cache` must be None"):
        model(input_ids, past_key_values=cache, output_loop_logits=True)


def test_the_prelude_and_the_coda_keep_their_cache_slots_at_any_loop_count():
    model = tiny_looped(num_prelude_layers=1, num_coda_layers=1)
    input_ids = random_ids(1, 4)
    few, many = (model(input_ids, num_loops=n).past_key_values for n in (2, 4))
    assert torch.equal(few.layers[0].keys, many.layers[0].keys)
    for slot in range(2, 6):
        assert torch.equal(few.layers[slot].keys, many.layers[slot].keys)


@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_weights_are_stored_once_and_stay_shared(tie_word_embeddings, tmp_path):
    model = tiny_looped(tie_word_embeddings=tie_word_embeddings, num_loops=6)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 a safetensors file is no dict
    assert stored == sum(parameter.numel() for parameter in model.parameters())
    loaded = LoopedForCausalLM.from_pretrained(tmp_path).to(torch.float64)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tie_word_embeddings
    assert sum(p.numel() for p in loaded.parameters()) == stored


def test_resizing_the_embeddings_reaches_the_backbone():
    model = tiny_looped(tie_word_embeddings=True)
    model.resize_token_embeddings(120)
    assert model.config.vocab_size == model.config.backbone_config.vocab_size == 120
    assert model(random_ids(1, 4)).logits.shape[-1] == 120


@pytest.mark.parametrize("model_class", [LoopedForSequenceClassification, LoopedForTokenClassification])
def test_classification_heads_take_loops_and_train(model_class, tmp_path):
    config = LoopedConfig(backbone_config=tiny_backbone("llama"), num_loops=2, num_labels=5)
    model = model_class(config)
    input_ids = random_ids(3, 6)
    labels = torch.tensor([0, 4, 2]) if model_class is LoopedForSequenceClassification else random_ids(3, 6) % 5
    model(input_ids, labels=labels).loss.backward()
    model.eval()
    assert not torch.equal(model(input_ids, num_loops=1).logits, model(input_ids, num_loops=4).logits)
    model.save_pretrained(tmp_path)
    assert torch.equal(model_class.from_pretrained(tmp_path)(input_ids).logits, model(input_ids).logits)


def test_auto_classes_open_what_was_saved(tmp_path):
    config = LoopedConfig(backbone_config=tiny_backbone("llama"), num_labels=3)
    LoopedForSequenceClassification(config).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(model, LoopedForSequenceClassification)
    assert isinstance(model.model, LoopedModel)


def test_a_truncated_checkpoint_is_an_error(tmp_path):
    tiny_looped().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(Exception, match="(?i)incomplete|invalid|header|metadata|truncat"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
