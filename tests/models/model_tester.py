"""What every recurrent causal model must hold, whatever its schedule. A family's test class says how to make one."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache


VOCAB_SIZE = 97
# the same examples every time; every family's class runs them, which hypothesis would otherwise refuse
INHERITED = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.differing_executors]
)


def random_ids(batch_size: int, length: int, seed: int = 0) -> torch.Tensor:
    """Token ids `[B, T]` without the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB_SIZE, (batch_size, length), generator=generator)


def left_pad(rows: list[torch.Tensor], pad_token_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths as one batch, with its mask."""
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, width - len(row) :] = row
        attention_mask[index, width - len(row) :] = 1
    return input_ids, attention_mask


class CausalModelTester:
    """Inherit, and define `make_model(**overrides)` (in evaluation mode, larger than default weights) and `DEPTHS`."""

    # keyword arguments of forward and generate: one pass, as configured, more than configured
    DEPTHS: tuple[dict, ...] = ()

    def make_model(self, **overrides):
        """The family's tiny model; every family's class defines it."""
        raise NotImplementedError

    def make_cache(self, model, depth: dict) -> DynamicCache:
        """An empty cache for a call with the arguments `depth`; every family's class defines it."""
        raise NotImplementedError

    @INHERITED
    @given(
        pieces=st.lists(st.integers(1, 6), min_size=1, max_size=5), depth=st.integers(0, 2), seed=st.integers(0, 99)
    )
    @torch.no_grad()
    def test_cached_equals_uncached(self, pieces, depth, seed):
        model, depth = self.make_model(), self.DEPTHS[depth]
        input_ids = random_ids(2, sum(pieces), seed)
        expected = model(input_ids, use_cache=False, **depth).logits
        cache = self.make_cache(model, depth)
        logits = [model(piece, past_key_values=cache, **depth).logits for piece in input_ids.split(pieces, dim=1)]
        torch.testing.assert_close(torch.cat(logits, dim=1), expected, atol=2e-5, rtol=2e-5)

    @INHERITED
    @given(lengths=st.lists(st.integers(1, 11), min_size=2, max_size=4), depth=st.integers(0, 2))
    @torch.no_grad()
    def test_a_left_padded_row_equals_the_row_alone(self, lengths, depth):
        model, depth = self.make_model(), self.DEPTHS[depth]
        rows = [random_ids(1, length, seed)[0] for seed, length in enumerate(lengths)]
        input_ids, attention_mask = left_pad(rows)
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        batched = model(input_ids, attention_mask=attention_mask, position_ids=position_ids, **depth).logits
        for row, logits in zip(rows, batched):
            alone = model(row[None], **depth).logits[0]
            torch.testing.assert_close(logits[-len(row) :], alone, atol=2e-5, rtol=2e-5)

    @pytest.mark.parametrize("depth", [0, 1, 2])
    def test_generate_equals_repeated_forward_passes(self, depth):
        model, depth = self.make_model(), self.DEPTHS[depth]
        input_ids = random_ids(3, 7)
        generated = model.generate(input_ids, max_new_tokens=6, do_sample=False, eos_token_id=None, **depth)
        with torch.no_grad():
            for _ in range(6):
                next_ids = model(input_ids, use_cache=False, **depth).logits[:, -1].argmax(-1)
                input_ids = torch.cat([input_ids, next_ids[:, None]], dim=1)
        assert torch.equal(generated, input_ids)

    def test_a_left_padded_prompt_generates_what_it_generates_alone(self):
        model, depth = self.make_model(), self.DEPTHS[2]
        rows = [random_ids(1, length, length)[0] for length in (3, 8, 5)]
        input_ids, attention_mask = left_pad(rows)
        options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, **depth}
        batched = model.generate(input_ids, attention_mask=attention_mask, **options)
        for row, generated in zip(rows, batched):
            assert torch.equal(model.generate(row[None], **options)[0, -5:], generated[-5:])

    def test_saved_and_loaded_gives_the_same_logits(self, tmp_path):
        model = self.make_model()
        model.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert type(loaded) is type(model)
        input_ids = random_ids(2, 9)
        for depth in self.DEPTHS:
            with torch.no_grad():
                assert torch.equal(loaded(input_ids, **depth).logits, model(input_ids, **depth).logits)

    def test_every_parameter_gets_gradient(self):
        model = self.make_model().train()
        input_ids = random_ids(2, 9)
        model(input_ids, labels=input_ids, use_cache=False).loss.backward()
        parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert [name for name, parameter in parameters if parameter.grad is None] == []
