"""What holds for every converter of a looped class that transformers has itself: the two are the same function, at any
number of loops. The test class of a converter says how to make its native model."""

import copy
import json
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache

import hf_loop
from hf_loop.models.transformers_seams import cache_of, named_cache

from ...models.model_tester import left_pad, random_ids


GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
WITH_LOGITS = {"output_logits": True, "return_dict_in_generate": True}


class NativeTester:
    converter: ModuleType
    class_name: str
    # the field of the native configuration that holds the number of loops, and the number
    loops_field: str
    own_loops = 3
    # what the configuration of the converted model says
    schedule: dict[str, Any] = {}
    # other native configurations to convert, to train, to write back, and those that differ in their caches
    configurations: list[dict] = []
    trained: list[dict] = [{}]
    written: list[dict] = [{}]
    cached: list[dict] = [{}]
    # further arguments of a call on `input_ids`
    calls: list[dict] = [{}]
    generation_options: list[dict] = [{}]
    half_dtypes = {torch.bfloat16}
    gradients_close: dict[str, float] = {}
    # tensors, each as it is stored and as messages name it
    missing: tuple[str, str]
    misshapen = ("lm_head.weight", "lm_head.weight")
    input_ids = random_ids(2, 12)
    num_tokens = 97

    def make_native(self, **fields):
        """A native model of large random weights, in evaluation mode; every class defines it."""
        raise NotImplementedError

    def make_config(self, **fields):
        """Its configuration; every class defines it."""
        raise NotImplementedError

    def with_loops(self, native, num_loops: int):
        """The native model made anew for another number of loops, with the same weights."""
        config = copy.deepcopy(native.config)
        setattr(config, self.loops_field, num_loops)
        other = type(native)(config).eval()
        other.load_state_dict(native.state_dict())
        return other

    def with_mask(self, attention_mask):
        """Arguments of a call with padding: positions are counted without it, as `generate` does."""
        return {"attention_mask": attention_mask, "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0)}

    def caches(self, fields: dict) -> list:
        """Functions that make an empty cache for a configuration."""
        return [lambda config: DynamicCache(config=config)]

    def num_slots(self, model, num_loops: int, fields: dict) -> int:
        return len(model.config.calls(num_loops=num_loops))

    def num_filled(self, cache) -> int:
        return len(cache.layers)

    def prompt(self) -> dict:
        input_ids, attention_mask = self.padded_rows(3, 9)
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def check_generated(self, found, fields: dict) -> None:
        """Hold what `generate` returns to more than its tokens and logits."""

    def rewritten_config(self, original: dict) -> dict:
        """The `config.json` that comes back of one that was converted."""
        return original

    def check_written(self, written, folder, num_loops: int) -> None:
        """Hold the written model and its folder to more than its configuration and tensors."""

    def pytest_generate_tests(self, metafunc):
        for name in ("configurations", "trained", "written", "cached"):
            if f"of_{name}" in metafunc.fixturenames:
                metafunc.parametrize(f"of_{name}", getattr(self, name), ids=str)

    def padded_rows(self, *lengths: int):
        return left_pad([random_ids(1, length, length)[0].clamp(max=self.num_tokens - 1) for length in lengths])

    @property
    def layout(self) -> str:
        return self.converter.__name__.rpartition(".")[2]

    @property
    def write(self) -> Any:
        return getattr(self.converter, f"to_{self.layout}")

    @torch.no_grad()
    def test_logits_equal_the_native_model_bit_for_bit(self, native, folder):
        model = hf_loop.convert(folder)
        found = {"num_loops": self.own_loops, **self.schedule}
        assert {name: getattr(model.config, name) for name in found} == found
        for call in self.calls:
            assert torch.equal(model(self.input_ids, **call).logits, native(self.input_ids, **call).logits)
            found = {}
            for num_loops in (1, 2, 5):
                found[num_loops] = model(self.input_ids, num_loops=num_loops, **call).logits
                other, ours = self.with_loops(native, num_loops), hf_loop.convert(folder, num_loops=num_loops)
                assert torch.equal(found[num_loops], other(self.input_ids, **call).logits)
                assert torch.equal(found[num_loops], ours(self.input_ids, **call).logits)
            # the number of loops matters
            assert (found[1] - found[2]).abs().max() > 0.01 * found[1].abs().max()

    @torch.no_grad()
    def test_other_configurations(self, of_configurations, tmp_path):
        native = self.make_native(**of_configurations)
        native.save_pretrained(tmp_path)
        model = hf_loop.convert(tmp_path)
        assert torch.equal(model(self.input_ids).logits, native(self.input_ids).logits)
        expected = self.with_loops(native, 4)(self.input_ids).logits
        assert torch.equal(model(self.input_ids, num_loops=4).logits, expected)

    @torch.no_grad()
    def test_half_precision(self, folder, tmp_path):
        native = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        model = hf_loop.convert(folder, dtype=torch.bfloat16)
        dtypes = {name.replace("backbone.", ""): parameter.dtype for name, parameter in model.named_parameters()}
        assert dtypes == {name: parameter.dtype for name, parameter in native.named_parameters()}
        assert set(dtypes.values()) == self.half_dtypes
        expected = native(self.input_ids).logits
        # as it is stored: what is always float32 does not make the rest so
        native.save_pretrained(tmp_path / "half")
        stored = hf_loop.convert(tmp_path / "half")
        assert stored.dtype == torch.bfloat16
        for same in (model, stored, self.write(stored)):
            logits = same(self.input_ids).logits
            assert logits.dtype == expected.dtype
            assert torch.equal(logits, expected)

    @torch.no_grad()
    def test_a_left_padded_batch_equals_the_native_model(self, native, folder):
        model = hf_loop.convert(folder)
        input_ids, attention_mask = self.padded_rows(3, 9)
        inputs = self.with_mask(attention_mask)
        logits = model(input_ids, **inputs).logits
        assert torch.equal(logits, native(input_ids, **inputs).logits)
        alone = model(input_ids[:1, -3:], **self.with_mask(attention_mask[:1, -3:])).logits
        torch.testing.assert_close(logits[0, -3:], alone[0], atol=1e-5, rtol=1e-5)
        counted = model(input_ids, attention_mask=attention_mask).logits
        assert torch.equal(counted, native(input_ids, attention_mask=attention_mask).logits)

    @torch.no_grad()
    @pytest.mark.parametrize("num_loops", [1, 3, 4])
    def test_a_cache_equals_the_native_model(self, num_loops, of_cached, tmp_path):
        native = self.make_native(**of_cached)
        native.save_pretrained(tmp_path)
        model, other = hf_loop.convert(tmp_path), self.with_loops(native, num_loops)
        input_ids, attention_mask = self.padded_rows(7, 14)
        num_slots = self.num_slots(model, num_loops, of_cached)
        for make_cache in self.caches(of_cached):
            theirs, ours, seen = None, make_cache(model.config.with_num_loops(num_loops)), 0
            for piece in input_ids.split([6, 3, 1, 1, 3], dim=1):
                seen += piece.shape[1]
                mask = attention_mask[:, :seen]
                positions = torch.arange(seen - piece.shape[1], seen)[None]
                inputs = {"input_ids": piece, "attention_mask": mask, "position_ids": positions}
                expected = other(**inputs, **named_cache(theirs), use_cache=True)
                outputs = model(**inputs, cache=ours, num_loops=num_loops)
                theirs = cache_of(expected)
                visible = mask[:, -piece.shape[1] :].bool()
                torch.testing.assert_close(outputs.logits[visible], expected.logits[visible], atol=1e-6, rtol=1e-6)
            assert len(theirs.layers) == self.num_filled(ours) == num_slots

    @pytest.mark.parametrize("num_loops", [1, 3, 4])
    def test_generation_equals_the_native_model(self, num_loops, of_cached, tmp_path):
        native = self.make_native(**of_cached)
        native.save_pretrained(tmp_path / "native")
        model = hf_loop.convert(tmp_path / "native")
        model.save_pretrained(tmp_path / "ours")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
        prompt = self.prompt()
        expected = self.with_loops(native, num_loops).generate(**prompt, **GREEDY, **WITH_LOGITS)
        for ours in (model, loaded):
            found = ours.generate(**prompt, **GREEDY, num_loops=num_loops, **WITH_LOGITS)
            assert torch.equal(found.sequences, expected.sequences)
            self.check_generated(found, of_cached)
            torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-5, rtol=1e-5)
        for options in self.generation_options:
            found = model.generate(**prompt, **GREEDY, num_loops=num_loops, **options)
            assert torch.equal(found, expected.sequences)
        loaded.generation_config.num_loops = num_loops
        assert torch.equal(loaded.generate(**prompt, **GREEDY), expected.sequences)

    def test_gradients_equal_the_native_model(self, of_trained, tmp_path):
        native = self.make_native(**of_trained)
        native.save_pretrained(tmp_path)
        gradients = []
        for trained in (native, hf_loop.convert(tmp_path)):
            trained.train()
            trained(self.input_ids, labels=self.input_ids, use_cache=False).loss.backward()
            named = trained.named_parameters()
            gradients.append({name.replace("backbone.", ""): p.grad for name, p in named if p.requires_grad})
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, msg=name, **self.gradients_close)

    @torch.no_grad()
    @pytest.mark.parametrize("num_loops", [None, 5])
    def test_written_back_it_is_the_native_model(self, num_loops, of_written, tmp_path):
        native = self.make_native(**of_written)
        native.save_pretrained(tmp_path / "native")
        model = hf_loop.convert(tmp_path / "native")
        written = self.write(model, num_loops)
        assert not {p.data_ptr() for p in written.parameters()} & {p.data_ptr() for p in model.parameters()}
        written.save_pretrained(tmp_path / "written")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "written")
        assert isinstance(loaded, getattr(transformers, self.class_name))
        for call in self.calls:
            expected = model(self.input_ids, num_loops=num_loops, **call).logits
            for back in (written, loaded):
                assert getattr(back.config, self.loops_field) == (num_loops or self.own_loops)
                assert torch.equal(back(self.input_ids, **call).logits, expected)
        self.check_written(loaded, tmp_path / "written", num_loops or self.own_loops)
        if num_loops is None:
            names = ("written", "native")
            saved, original = (json.loads((tmp_path / name / "config.json").read_text()) for name in names)
            assert saved == self.rewritten_config(original)
            # the names of published files
            saved, original = (load_file(tmp_path / name / "model.safetensors") for name in names)
            assert saved.keys() == original.keys()
            assert all(torch.equal(saved[name], original[name]) for name in saved)

    def test_special_tokens_come_from_the_tokenizer_only_where_the_configuration_has_none(self):
        source = self.make_config(eos_token_id=None).to_dict()
        source["tokenizer_token_ids"] = {"eos_token_id": 7, "bos_token_id": 8}
        config = self.converter.convert_config(source)
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 7)

    @pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
    def test_tensors_that_do_not_fit_are_named(self, fault, folder):
        tensors = load_file(folder / "model.safetensors")
        if fault == "missing":
            stored, name = self.missing
            del tensors[stored]
            message = rf"not those of \w+: 1 missing \({name}\)"
        elif fault == "unknown":
            tensors["extra"] = torch.ones(2)
            message = "not known: extra"
        else:
            stored, name = self.misshapen
            tensors[stored] = torch.ones(5, *tensors[stored].shape[1:])
            message = f"1 misshapen .*{name}"
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            hf_loop.convert(folder)

    def test_a_tied_head_that_differs_is_refused(self, tmp_path):
        native = self.make_native(tie_word_embeddings=True)
        if native.lm_head.weight is not native.get_input_embeddings().weight:
            pytest.skip("the native class never ties its head")
        native.save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        head = {"lm_head.weight": torch.randn_like(native.lm_head.weight)}
        save_file(tensors | head, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            ValueError, match=r"ties lm_head\.weight to model\.backbone\.embed_tokens\.weight, but they"
        ):
            hf_loop.convert(tmp_path)


class NewNativeTester(NativeTester):
    """The same for a class that transformers has since 5.24."""

    def test_an_older_transformers_is_named(self, folder, monkeypatch):
        monkeypatch.setattr(self.converter, "CONFIG_MAPPING", {})
        message = rf"an? {self.layout} checkpoint needs transformers 5\.24 or later, got "
        with pytest.raises(ValueError, match=message):
            hf_loop.convert(folder)
