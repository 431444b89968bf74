"""The feedback model: what a token sees, block by block, against plain twins written here."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from .feedback_variants import BLOCK_SIZE, VARIANTS, WITH_MEMORY, make_feedback
from .model_tester import INHERITED, CausalModelTester, left_pad, random_ids


class FeedbackTester(CausalModelTester):
    """The shared tests; a schedule has no depth, so that the three depths are one."""

    DEPTHS = ({}, {}, {})
    VARIANT = "one segment"

    def make_model(self, **overrides):
        return make_feedback(**{**VARIANTS[self.VARIANT], **overrides})

    def make_cache(self, model, depth):
        return DynamicCache(config=model.config)


class TestOneSegment(FeedbackTester):
    pass


class TestNoSegments(FeedbackTester):
    VARIANT = "no segments"


class TestAllSegments(FeedbackTester):
    VARIANT = "all segments"


class TestPrefix(FeedbackTester):
    VARIANT = "prefix"


class TestFirstResidual(FeedbackTester):
    VARIANT = "first residual"


class TestRecurrentMemoryTokens(FeedbackTester):
    VARIANT = "recurrent memory tokens"


class TestNoMemory(FeedbackTester):
    VARIANT = "no memory"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_no_token_changes_a_logit_before_it(variant, seed):
    model = make_feedback(seed=seed, **VARIANTS[variant])
    input_ids = random_ids(1, 3 * BLOCK_SIZE + 1, seed)
    expected = model(input_ids).logits
    for changed in range(input_ids.shape[1]):
        other_ids = input_ids.clone()
        other_ids[:, changed:] = random_ids(1, input_ids.shape[1] - changed, seed + 100)
        assert torch.equal(model(other_ids).logits[:, :changed], expected[:, :changed])


@pytest.mark.parametrize("variant", WITH_MEMORY)
@torch.no_grad()
def test_the_first_block_reaches_the_last(variant):
    model = make_feedback(**VARIANTS[variant])
    input_ids = random_ids(1, 10 * BLOCK_SIZE)
    other_ids = input_ids.clone()
    other_ids[:, 1] = 3 + (input_ids[:, 1] - 2) % 94
    difference = model(other_ids).logits - model(input_ids).logits
    assert difference[:, -BLOCK_SIZE:].abs().max() > 0


@torch.no_grad()
def test_without_a_memory_nothing_reaches_beyond_the_segments():
    # four layers of which each sees one block back
    model = make_feedback(feedback_length=0, num_memory_segments=1)
    input_ids = random_ids(1, 7 * BLOCK_SIZE)
    other_ids = input_ids.clone()
    other_ids[:, 0] = 3 + (input_ids[:, 0] - 2) % 94
    difference = (model(other_ids).logits - model(input_ids).logits).abs().amax(-1)[0]
    assert difference[5 * BLOCK_SIZE - 1] > 0
    assert difference[5 * BLOCK_SIZE :].max() == 0


def reference_logits(model, input_ids: torch.Tensor, num_segments: int, zero_first_residual: bool) -> torch.Tensor:
    """Algorithm 2 of TransformerFAM for a Llama backbone, written plainly: one row, no cache, loops over queries."""
    decoder, config = model.model.backbone, model.model.backbone.config
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    size, length = model.config.block_size, model.config.feedback_length

    def project(layer, states, positions):
        attention, normed = layer.self_attn, layer.input_layernorm(states)
        query = attention.q_proj(normed).view(1, -1, heads, width).transpose(1, 2)
        key = attention.k_proj(normed).view(1, -1, kv_heads, width).transpose(1, 2)
        value = attention.v_proj(normed).view(1, -1, kv_heads, width).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *decoder.rotary_emb(states, positions[None]))
        repeats = heads // kv_heads
        return query[0], key[0].repeat_interleave(repeats, 0), value[0].repeat_interleave(repeats, 0)

    def attend(layer, query, keys, values):
        weights = (query @ torch.cat(keys, 1).transpose(1, 2) * width**-0.5).softmax(-1)
        return layer.self_attn.o_proj((weights @ torch.cat(values, 1)).transpose(0, 1).flatten(1))

    def feed_forward(layer, states):
        return states + layer.mlp(layer.post_attention_layernorm(states))

    segments = [[] for _ in decoder.layers]
    memory: list = [None for _ in decoder.layers]
    outputs = []
    for start in range(0, input_ids.shape[1], size):
        tokens = decoder.embed_tokens(input_ids[0, start : start + size])
        travelling = model.model.feedback_embedding.weight
        for index, layer in enumerate(decoder.layers):
            is_first = memory[index] is None
            feedback = travelling if is_first else memory[index]
            queries, keys, values = project(layer, tokens, torch.arange(start, start + len(tokens)))
            feedback_queries, feedback_keys, feedback_values = project(
                layer, feedback, torch.arange(start - length, start)
            )
            seen_keys = [key for key, _ in segments[index][len(segments[index]) - num_segments :]]
            seen_values = [value for _, value in segments[index][len(segments[index]) - num_segments :]]
            if not is_first:
                seen_keys, seen_values = [*seen_keys, feedback_keys], [*seen_values, feedback_values]
            attended = [
                attend(
                    layer,
                    queries[:, token : token + 1],
                    [*seen_keys, keys[:, : token + 1]],
                    [*seen_values, values[:, : token + 1]],
                )
                for token in range(len(tokens))
            ]
            new_tokens = feed_forward(layer, tokens + torch.cat(attended))
            residual = torch.zeros_like(feedback) if is_first and zero_first_residual else feedback
            compressed = attend(layer, feedback_queries, [feedback_keys, keys], [feedback_values, values])
            travelling = memory[index] = feed_forward(layer, residual + compressed)
            segments[index].append((keys, values))
            tokens = new_tokens
        outputs.append(tokens)
    return model.lm_head(decoder.norm(torch.cat(outputs)))


@pytest.mark.parametrize("zero_first_residual", [True, False])
@pytest.mark.parametrize("num_segments", [0, 1, 2])
@torch.no_grad()
def test_equals_algorithm_2_of_the_paper(num_segments, zero_first_residual):
    model = make_feedback(num_memory_segments=num_segments, zero_first_residual=zero_first_residual)
    input_ids = random_ids(1, 5 * BLOCK_SIZE + 3)
    expected = reference_logits(model, input_ids, num_segments, zero_first_residual)
    torch.testing.assert_close(model(input_ids).logits[0], expected, atol=2e-5, rtol=2e-5)
    other = reference_logits(model, input_ids, num_segments, not zero_first_residual)
    assert (other - expected).abs().max() > 1e-3


@INHERITED
@given(
    lengths=st.lists(st.integers(1, 14), min_size=2, max_size=4),
    pieces=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    variant=st.sampled_from(sorted(VARIANTS)),
)
@torch.no_grad()
def test_sequences_at_different_positions_of_their_blocks_continue_as_alone(lengths, pieces, variant):
    model = make_feedback(**VARIANTS[variant])
    rows = [random_ids(1, length + sum(pieces), seed)[0] for seed, length in enumerate(lengths)]
    input_ids, attention_mask = left_pad([row[:length] for row, length in zip(rows, lengths)])
    cache = DynamicCache(config=model.config)
    logits = [model(input_ids, attention_mask=attention_mask, past_key_values=cache).logits]
    ends = torch.tensor(lengths)
    for piece in pieces:
        new_ids = torch.stack([row[end : end + piece] for row, end in zip(rows, ends)])
        attention_mask = torch.cat([attention_mask, torch.ones_like(new_ids)], dim=1)
        logits.append(model(new_ids, attention_mask=attention_mask, past_key_values=cache).logits)
        ends += piece
    for row, got in zip(rows, torch.cat(logits, dim=1)):
        torch.testing.assert_close(got[-len(row) :], model(row[None]).logits[0], atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_packed_documents_equal_the_documents_alone(variant):
    model = make_feedback(**VARIANTS[variant])
    documents = [random_ids(1, length, length)[0] for length in (5, 13, 2, 9, 10, 1)]
    packed = torch.stack([torch.cat(documents[:3]), torch.cat(documents[3:])])
    positions = torch.cat([torch.arange(len(document)) for document in documents]).view(2, -1)
    logits = model(packed, position_ids=positions).logits.flatten(0, 1)
    for document, got in zip(documents, logits.split([len(document) for document in documents])):
        torch.testing.assert_close(got, model(document[None]).logits[0], atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_padding_on_the_right_and_in_the_middle_counts_for_no_block():
    model = make_feedback()
    input_ids = random_ids(1, 11)
    columns = torch.tensor([0, 1, 4, 5, 6, 7, 10, 11, 12, 13, 14])
    padded, mask = torch.zeros(1, 18, dtype=torch.long), torch.zeros(1, 18, dtype=torch.long)
    padded[:, columns], mask[:, columns] = input_ids, 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(padded, attention_mask=mask, position_ids=positions).logits[:, columns]
    torch.testing.assert_close(logits, model(input_ids).logits, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_a_given_memory_is_read_from_the_first_block_on():
    model = make_feedback(num_memory_segments=0)
    input_ids = random_ids(1, 5 * BLOCK_SIZE)
    first = model(input_ids[:, : 2 * BLOCK_SIZE], use_cache=False).feedback
    assert first.shape == (1, 4, 2, 64)
    positions = torch.arange(2 * BLOCK_SIZE, 5 * BLOCK_SIZE)[None]
    rest = model(
        input_ids[:, 2 * BLOCK_SIZE :], position_ids=positions, initial_feedback=first[0], use_cache=False
    ).logits
    torch.testing.assert_close(rest, model(input_ids).logits[:, 2 * BLOCK_SIZE :], atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_the_returned_memories_are_in_the_order_of_the_batch():
    model = make_feedback()
    rows = [random_ids(1, length, length)[0] for length in (3, 13, 5, 9)]
    input_ids, attention_mask = left_pad(rows)
    feedback = model(input_ids, attention_mask=attention_mask, use_cache=False).feedback
    assert feedback[0].abs().max() == 0
    for row, memory in zip(rows[1:], feedback[1:]):
        alone = model(row[None], use_cache=False).feedback[0]
        torch.testing.assert_close(memory, alone, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_hidden_states_are_those_of_the_tokens():
    model = make_feedback(feedback_length=0, num_memory_segments=None)
    input_ids = random_ids(2, 3 * BLOCK_SIZE + 1)
    states = model(input_ids, output_hidden_states=True).hidden_states
    decoder = model.model.backbone
    expected = decoder(input_ids, output_hidden_states=True).hidden_states
    assert len(states) == len(expected) == 5
    for got, want in zip(states, expected):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_an_offset_of_all_positions_changes_rounding_only():
    model = make_feedback()
    input_ids = random_ids(1, 3 * BLOCK_SIZE)
    positions = torch.arange(3 * BLOCK_SIZE)[None]
    shifted = model(input_ids, position_ids=positions + 1000).logits
    torch.testing.assert_close(shifted, model(input_ids).logits, atol=5e-3, rtol=5e-3)


def test_the_offset_is_drawn_in_training_only():
    model = make_feedback(random_position_offset=500)
    plain = make_feedback()
    differ = []
    for seed in range(20):
        input_ids = random_ids(1, 3 * BLOCK_SIZE, seed)
        with torch.no_grad():
            assert torch.equal(model.eval()(input_ids).logits, plain(input_ids).logits)
            differ.append(not torch.equal(model.train()(input_ids, use_cache=False).logits, plain(input_ids).logits))
    # about half of the texts, by their tokens
    assert 5 <= sum(differ) <= 15


@pytest.mark.parametrize("name", ["num_memory_segments", "feedback_length", "random_position_offset"])
def test_a_negative_length_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must not be negative, got -1"):
        make_feedback(**{name: -1})


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="`block_size` must be an integer of at least 1, got 0"):
        make_feedback(block_size=0)
    with pytest.raises(ValueError, match="`random_state_passing` must be a probability, got 1.5"):
        make_feedback(random_state_passing=1.5)
    with pytest.raises(ValueError, match="`feedback_init='prefix'` needs `feedback_source='layer'`"):
        make_feedback(feedback_init="prefix", feedback_source="top")
    model = make_feedback()
    with pytest.raises(ValueError, match=r"`initial_feedback` must be of shape \(4, 2, 64\), got \(1, 2, 64\)"):
        model(random_ids(1, 4), initial_feedback=torch.zeros(1, 2, 64))
    with pytest.raises(ValueError, match="`attention_mask` must be a padding mask"):
        model(random_ids(1, 4), attention_mask=torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"`attention_mask` must cover 1 rows of 4 tokens, got \(1, 3\)"):
        model(random_ids(1, 4), attention_mask=torch.ones(1, 3))


def test_the_head_weights_the_labels():
    model = make_feedback()
    input_ids = random_ids(2, 9)
    weights = torch.rand(2, 9)
    logits = model(input_ids).logits
    losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), input_ids[:, 1:], reduction="none")
    expected = (losses * weights[:, 1:]).sum() / losses.numel()
    loss = model(input_ids, labels=input_ids, loss_weights=weights).loss
    torch.testing.assert_close(loss, expected)
