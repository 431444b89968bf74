"""The puzzle model: every preset against its forward pass written out, the carry, halting, losses and `solve`."""

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForMaskedLM, LlamaConfig

from hf_loop import HierarchicalConfig, HierarchicalForCausalLM, HierarchicalForPuzzle, HierarchicalPuzzleConfig
from hf_loop.models import HierarchicalCarry, HierarchicalPuzzleModel
from hf_loop.models.hierarchical_presets import PRESETS, gated_width
from hf_loop.models.puzzle_loss import puzzle_loss, solved_rows, stablemax_log_probabilities
from hf_loop.retrofitting.converters.hrm_text import to_hrm_text

from .puzzle_reference import encode, segment, weights_of
from .puzzle_variants import CELLS, SIZES, VARIANTS, VOCAB_SIZE, puzzles, tiny_puzzle_model
from .tiny_backbones import tiny_backbone


PUZZLES, ANSWERS = puzzles(), puzzles(seed=1)
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


@pytest.fixture(params=VARIANTS, ids=str)
def model(request):
    return tiny_puzzle_model(request.param)


@pytest.fixture
def precise_model(model):
    """Three segments are up to 250 layer calls deep: random weights amplify what single precision rounds away."""
    return model.double()


@torch.no_grad()
def test_three_segments_equal_the_definition_written_out(precise_model):
    weights, carry, states = weights_of(precise_model), None, None
    puzzle_ids = torch.tensor([2, 0, 1]) if precise_model.config.num_puzzles == 3 else None
    encoded = encode(weights, PUZZLES, puzzle_ids)
    for count in range(1, 4):
        logits, halt_logits, states = segment(weights, encoded, states)
        outputs = precise_model(PUZZLES, carry=carry, puzzle_ids=puzzle_ids)
        carry = outputs.carry
        torch.testing.assert_close(outputs.logits, logits, **CLOSE)
        if precise_model.config.halting == "none":
            assert outputs.halt_logits is None
        else:
            wanted = 2 if precise_model.config.halting == "q_learning" else 1
            assert outputs.halt_logits.shape == (3, wanted)
            torch.testing.assert_close(outputs.halt_logits, halt_logits.float(), **CLOSE)
        assert carry.steps.tolist() == [count] * 3
        at_once = precise_model(PUZZLES, num_segments=count, puzzle_ids=puzzle_ids, output_segments=True)
        assert torch.equal(at_once.logits, outputs.logits)
        assert len(at_once.segment_logits) == count


@torch.no_grad()
def test_the_hrm_text_preset_is_the_native_model():
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "head_dim": 16}
    config = HierarchicalConfig.from_preset("hrm_text", num_hidden_layers=2, initializer_range=0.3, **sizes)
    model = HierarchicalForCausalLM(config).eval()
    native = to_hrm_text(model)
    ids = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(ids).logits, native(ids).logits)
    assert (native.config.H_cycles, native.config.L_cycles) == (2, 3)


def test_presets_have_the_published_sizes():
    sizes = {
        name: HierarchicalForPuzzle(HierarchicalPuzzleConfig.from_preset(name)).num_parameters()
        for name in ("trm", "urm")
    }
    # 2-layer TRM with attention: 7M; URM's four layers with a convolution: 14M
    assert 6.5e6 < sizes["trm"] < 7e6
    assert 13e6 < sizes["urm"] < 14e6
    mixer = HierarchicalPuzzleConfig.from_preset("trm", token_mixer="mlp", max_position_embeddings=97)
    assert 4.5e6 < HierarchicalForPuzzle(mixer).num_parameters() < 5.5e6
    with torch.device("meta"):
        assert 27e6 < HierarchicalForPuzzle(HierarchicalPuzzleConfig.from_preset("hrm")).num_parameters() < 27.5e6
    # a gated MLP four times as wide, in steps of 256
    assert [gated_width(size) for size in (512, 97, 64)] == [1536, 512, 256]
    assert set(PRESETS) == {"hrm", "trm", "urm", "hrm_text", "plain"}


@torch.no_grad()
def test_a_row_with_step_zero_starts_anew_and_the_others_go_on(precise_model):
    carry = precise_model(PUZZLES, num_segments=2).carry
    steps = carry.steps.clone()
    steps[1] = 0
    mixed = precise_model(PUZZLES, carry=HierarchicalCarry(high=carry.high, steps=steps, low=carry.low))
    torch.testing.assert_close(mixed.logits[1], precise_model(PUZZLES).logits[1], **CLOSE)
    going_on = precise_model(PUZZLES, carry=carry).logits
    torch.testing.assert_close(mixed.logits[[0, 2]], going_on[[0, 2]], **CLOSE)
    assert mixed.carry.steps.tolist() == [3, 1, 3]


@torch.no_grad()
def test_a_batch_is_its_rows_alone(precise_model):
    together = precise_model(PUZZLES, num_segments=3)
    for row in range(3):
        alone = precise_model(PUZZLES[row : row + 1], num_segments=3)
        torch.testing.assert_close(together.logits[row], alone.logits[0], **CLOSE)


@torch.no_grad()
def test_every_cell_sees_every_other(model):
    changed = PUZZLES.clone()
    changed[:, -1] = changed[:, -1] % (VOCAB_SIZE - 1) + 1
    # the plain model runs its layers too: the last cell reaches the first
    assert not torch.allclose(model(changed).logits[:, 0], model(PUZZLES).logits[:, 0], atol=1e-4)


@torch.no_grad()
def test_segments_and_cycles_are_depth(precise_model):
    outputs = precise_model(PUZZLES, num_loops=4)
    expected = weights_of(precise_model)
    expected.schedule["num_loops"] = 4
    torch.testing.assert_close(outputs.logits, segment(expected, encode(expected, PUZZLES), None)[0], **CLOSE)


@torch.no_grad()
def test_saved_and_loaded_gives_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert isinstance(loaded, HierarchicalForPuzzle)
    first, second = (each(PUZZLES, num_segments=2) for each in (model, loaded))
    torch.testing.assert_close(first.logits, second.logits, **CLOSE)
    if first.halt_logits is not None:
        torch.testing.assert_close(first.halt_logits, second.halt_logits, **CLOSE)
    assert AutoConfig.from_pretrained(tmp_path, num_loops=5).num_loops == 5
    deeper = AutoModelForMaskedLM.from_pretrained(tmp_path, num_loops=5)
    torch.testing.assert_close(deeper(PUZZLES).logits, loaded(PUZZLES, num_loops=5).logits, **CLOSE)


def test_the_starting_states_are_saved_and_not_trained(tmp_path):
    model = tiny_puzzle_model()
    assert "model.initial_states" in model.state_dict()
    assert "model.initial_states" not in dict(model.named_parameters())
    assert model.model.initial_states.abs().max() <= 2 / 0.87962566 + 1e-6
    model.save_pretrained(tmp_path)
    torch.manual_seed(5)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.model.initial_states, model.model.initial_states)


@torch.no_grad()
def test_hidden_states_and_attentions_have_one_entry_per_layer_call():
    model = tiny_puzzle_model("trm")
    model.set_attn_implementation("eager")
    outputs = model(PUZZLES, output_hidden_states=True, output_attentions=True)
    num_calls = 3 * (6 + 1) * 4
    assert (len(outputs.hidden_states), len(outputs.attentions)) == (num_calls + 1, num_calls)
    torch.testing.assert_close(outputs.logits, tiny_puzzle_model("trm")(PUZZLES).logits, **CLOSE)


@torch.no_grad()
def test_other_backbones_run_in_both_directions():
    for model_type in ("llama", "qwen3", "olmo2"):
        config = HierarchicalPuzzleConfig(
            backbone_config=tiny_backbone(model_type), injection="add", state_init="zeros", num_loops=2
        )
        model = HierarchicalForPuzzle(config).eval()
        ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
        changed = ids.clone()
        changed[:, -1] = ids[:, 0]
        assert not torch.allclose(model(changed).logits[:, 0], model(ids).logits[:, 0], atol=1e-5), model_type


def test_a_backbone_that_is_causal_by_nature_is_refused():
    for model_type, reason in (("gemma3_text", "sliding_attention"), ("qwen3_5_text", "linear_attention")):
        config = HierarchicalPuzzleConfig(backbone_config=tiny_backbone(model_type))
        with pytest.raises(ValueError, match=f"{model_type}.*{reason}"):
            HierarchicalForPuzzle(config)
    with pytest.raises(ValueError, match="'hrm_backbone' cannot be opened: its layers see all positions"):
        backbone_config = HierarchicalPuzzleConfig.from_preset("trm", **SIZES).backbone_config
        HierarchicalForCausalLM(HierarchicalConfig(backbone_config=backbone_config))


@pytest.mark.parametrize(
    ("preset", "fields", "message"),
    [
        ("gru", {}, "`name` must be one of hrm, trm"),
        ("trm", {"num_puzzles": 0}, "must both be 0 or both be positive, got 0 and 16"),
        ("trm", {"puzzle_embedding_size": 999}, "`puzzle_embedding_size` must be from 1 to .* got 999"),
        ("trm", {"fixed_point_tolerance": 0}, "`fixed_point_tolerance` must be above 0, got 0"),
        ("trm", {"max_segments": 0}, "`max_segments` must be an integer of at least 1, got 0"),
        ("hrm", {"num_latent_states": 1}, "`num_latent_states=1` needs `shared_stack=True`"),
        ("trm", {"convolution_size": -1}, "`convolution_size` must not be negative, got -1"),
        (
            "trm",
            {"token_mixer": "mlp", "position_embedding": "rotary"},
            "`position_embedding` must be 'none' or 'learned'",
        ),
        ("trm", {"halting": "sometimes"}, "halting"),
    ],
)
def test_bad_fields_are_refused(preset, fields, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalPuzzleConfig.from_preset(preset, **{**SIZES, **fields})


def test_bad_calls_are_refused():
    model = tiny_puzzle_model("trm, mlp")
    with pytest.raises(ValueError, match="`num_segments` must be an integer of at least 1, got 0"):
        model(PUZZLES, num_segments=0)
    with pytest.raises(ValueError, match="`attention_mask` must be None with `token_mixer='mlp'`"):
        model(PUZZLES, attention_mask=torch.ones_like(PUZZLES))
    with pytest.raises(ValueError, match="exactly `max_position_embeddings` .12. positions, got 11"):
        model(puzzles(num_cells=8))
    with pytest.raises(ValueError, match="`carry` must be of shape"):
        model(PUZZLES[:2], carry=model(PUZZLES).carry)
    with pytest.raises(ValueError, match="`token_mixer='mlp'` needs `max_position_embeddings`"):
        HierarchicalPuzzleConfig.from_preset("trm", token_mixer="mlp")
    learned = tiny_puzzle_model("hrm, learned positions")
    with pytest.raises(ValueError, match="at most `max_position_embeddings` .32. positions fit, got 41"):
        learned(puzzles(num_cells=40))


# losses ------------------------------------------------------------------------------------------------------------


def test_stablemax_is_its_definition():
    logits = torch.tensor([[-3.0, -0.5, 0.0, 0.5, 20.0, -1e6]], requires_grad=True)
    scores = torch.where(logits >= 0, logits + 1, 1 / (1 - logits)).double()
    log_probabilities = stablemax_log_probabilities(logits)
    torch.testing.assert_close(log_probabilities, (scores / scores.sum()).log(), atol=1e-6, rtol=1e-6)
    log_probabilities[0, 1].backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", ["hrm", "trm", "plain"])
def test_the_loss_is_its_definition(name):
    model = tiny_puzzle_model(name, cell_loss="softmax").train()
    labels = ANSWERS.clone()
    labels[0, 2:5] = -100
    outputs = model(PUZZLES, labels=labels)
    rows = [functional.cross_entropy(logits, row) for logits, row in zip(outputs.logits, labels)]
    expected = torch.stack(rows)
    if name != "plain":
        is_solved = solved_rows(outputs.logits, labels).float()
        cross_entropy = functional.binary_cross_entropy_with_logits
        expected = expected + 0.5 * cross_entropy(outputs.halt_logits[:, 0], is_solved, reduction="none")
    if name == "hrm":
        halt, go_on = model(PUZZLES, carry=outputs.carry).halt_logits.unbind(1)
        target = torch.maximum(halt, go_on).sigmoid().detach()
        expected = expected + 0.5 * cross_entropy(outputs.halt_logits[:, 1], target, reduction="none")
    torch.testing.assert_close(outputs.loss, expected.mean())


def test_after_the_last_segment_going_on_is_worth_what_halting_is():
    model = tiny_puzzle_model("hrm", max_segments=2).train()
    outputs = model(PUZZLES, labels=ANSWERS, num_segments=2)
    halt = model(PUZZLES, carry=outputs.carry).halt_logits[:, 0]
    options = {"input_ids": PUZZLES, "num_loops": 2, "puzzle_ids": None, "attention_mask": None}
    torch.testing.assert_close(model.continue_targets(outputs.carry, options), halt.sigmoid())
    model.eval()
    assert model.continue_targets(outputs.carry, options) is None


def test_micro_batches_weigh_by_their_labels():
    logits, labels = torch.randn(4, CELLS, VOCAB_SIZE), puzzles(4, seed=3)
    labels[0, :6] = -100
    total = int((labels != -100).sum())
    halves = [
        puzzle_loss(logits[part], labels[part], "softmax", num_items_in_batch=total)
        for part in (slice(2), slice(2, 4))
    ]
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(sum(halves), expected)
    # a row without labels adds nothing, and is not solved
    labels[1] = -100
    assert puzzle_loss(logits[1:2], labels[1:2], "softmax") == 0
    assert solved_rows(functional.one_hot(labels.clamp(min=0), VOCAB_SIZE), labels).tolist() == [
        True,
        False,
        True,
        True,
    ]


# solve -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_solve_runs_all_segments_or_halts():
    model = tiny_puzzle_model("trm", max_segments=5)
    solution = model.solve(PUZZLES)
    outputs = model(PUZZLES, num_segments=5, output_segments=True)
    assert torch.equal(solution.logits, outputs.logits)
    assert torch.equal(solution.tokens, outputs.logits.argmax(-1))
    assert solution.segments.tolist() == [5] * 3

    # each row halts where its own logit first passes zero
    halts = torch.stack([logits[:, 0] for logits in outputs.segment_halt_logits])
    threshold = halts.median()
    model.halt_head.bias -= threshold
    halts = halts - threshold
    solution = model.solve(PUZZLES, halt=True)
    for row in range(3):
        passed = (halts[:, row] > 0).nonzero()
        first = int(passed[0]) if len(passed) else 4
        assert solution.segments[row] == first + 1
        torch.testing.assert_close(solution.logits[row], outputs.segment_logits[first][row], **CLOSE)
    model.halt_head.bias.fill_(99.0)
    assert model.solve(PUZZLES, halt=True).segments.tolist() == [1] * 3
    model.halt_head.bias.fill_(-99.0)
    assert model.solve(PUZZLES, halt=True).segments.tolist() == [5] * 3


@torch.no_grad()
def test_q_learning_halts_where_halting_is_worth_more():
    model = tiny_puzzle_model("hrm")
    assert model.halts(torch.tensor([[2.0, 1.0], [-3.0, -1.0], [0.0, 0.0]])).tolist() == [True, False, False]
    assert tiny_puzzle_model("plain").halts(None) is False


@torch.no_grad()
def test_a_fixed_point_is_where_the_state_stops_changing():
    model = tiny_puzzle_model("trm", halting="fixed_point", max_segments=32, low_cycles=2)
    assert not hasattr(model, "halt_head")
    outputs = model(PUZZLES, num_segments=32, output_segments=True)
    states, carry = [], None
    for _ in range(3):
        carry = model(PUZZLES, carry=carry).carry
        states.append(carry.high)
    changes = (states[2] - states[1]).flatten(1).norm(dim=1) / states[1].flatten(1).norm(dim=1)
    torch.testing.assert_close(outputs.segment_halt_logits[2][:, 0], (0.02 / changes).log())
    solution = model.solve(PUZZLES, halt=True)
    assert (solution.segments < 32).all()
    torch.testing.assert_close(solution.tokens, outputs.logits.argmax(-1))


@torch.no_grad()
def test_the_trajectory_is_kept_that_the_halting_head_thinks_most_of():
    model = tiny_puzzle_model("trm", max_segments=3)
    options = {"num_trajectories": 6, "latent_noise": 20.0}
    solution, alone = model.solve(PUZZLES, **options), model.solve(PUZZLES)
    assert solution.tokens.shape == (3, CELLS)
    # the first trajectory has no noise, so the best is never worse by the head's own judgement
    assert (solution.halt_logits >= alone.halt_logits - 1e-5).all()
    assert (solution.halt_logits > alone.halt_logits + 1e-3).any()
    again, other = model.solve(PUZZLES, **options), model.solve(PUZZLES, seed=1, **options)
    assert torch.equal(again.logits, solution.logits)
    assert not torch.equal(other.logits, solution.logits)
    with pytest.raises(ValueError, match="`num_trajectories` above 1 and `latent_noise` above 0 go together, got 4"):
        model.solve(PUZZLES, num_trajectories=4)
    with pytest.raises(ValueError, match="`latent_noise` must not be negative, got -1"):
        model.solve(PUZZLES, latent_noise=-1)
    with pytest.raises(ValueError, match="need a halting head"):
        tiny_puzzle_model("plain").solve(PUZZLES, halt=True)
    single = tiny_puzzle_model("urm", max_segments=2)
    assert single.solve(PUZZLES, num_trajectories=2, latent_noise=0.5).tokens.shape == (3, CELLS)


def test_tuples_and_low_precision():
    model = tiny_puzzle_model("trm").to(torch.bfloat16).train()
    loss, logits, *_ = model(PUZZLES, labels=ANSWERS, num_segments=2, return_dict=False)
    assert (loss.dtype, logits.dtype) == (torch.float32, torch.bfloat16)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_the_model_without_heads_runs_a_segment():
    torch.manual_seed(0)
    model = HierarchicalPuzzleModel(HierarchicalPuzzleConfig.from_preset("trm", **SIZES)).eval()
    outputs = model(PUZZLES)
    assert outputs.last_hidden_state.shape == (3, 16 + CELLS, 32)
    assert outputs.carry.map(lambda tensor: tensor[:1]).high.shape == (1, 16 + CELLS, 32)
    assert isinstance(model.config.backbone_config, LlamaConfig)
