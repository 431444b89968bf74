"""A checkpoint that reads images too is opened as its language model, by every function and command that takes one."""

import re
import shutil
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    GenerationConfig,
    LlamaForCausalLM,
    Mistral3ForConditionalGeneration,
    TorchAoConfig,
)

from hf_loop import retrofit, unroll
from hf_loop.cli.load import load_recurrent_model
from hf_loop.cli.main import main
from hf_loop.evaluation import scan_layer_ranges
from hf_loop.loading import load_pretrained
from hf_loop.tasks import shell_game
from hf_loop.text_parts import decoder_config, load_decoder, text_part

from .models.tiny_backbones import tiny_backbone
from .tiny_composites import tiny_composite


TOKENIZER = shell_game(1, 1)[1]
INPUT_IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
COMPOSITES = {
    # leaves out the soft-capping that its tiny language model has
    "gemma3": {},
    "qwen3_5": {},
    "mistral3": {},
    "llava": {},
    # these leave out what Cohere's language model does to the logits
    "aya_vision": {},
    "cohere2_vision": {},
    "idefics3": {"tie_word_embeddings": True},
    "internvl": {},
    "kimi_k25": {},
}
# every way that transformers stores them: names of its own, old names, the language model's class in the Auto table
COMMANDS = ["gemma3", "qwen3_5", "mistral3"]


@pytest.fixture(params=COMPOSITES)
def whole(request):
    model = tiny_composite(request.param, **COMPOSITES[request.param])
    model.generation_config = GenerationConfig(max_new_tokens=7, pad_token_id=0, eos_token_id=2)
    return model


@torch.no_grad()
@pytest.mark.parametrize("family", ["looped", "feedback", "sleep"])
def test_the_language_model_computes_what_the_whole_does(whole, family, tmp_path):
    expected = whole(input_ids=INPUT_IDS).logits
    is_tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    whole.save_pretrained(tmp_path / "whole")
    options = {
        "looped": {"num_loops": 1},
        "feedback": {"feedback_length": 0, "num_memory_segments": None},
        "sleep": {},
    }[family]
    layer_types = getattr(decoder_config(tmp_path / "whole"), "layer_types", None) or []
    if family == "feedback" and "linear_attention" in layer_types:
        pytest.skip("feedback needs attention in every layer")
    for source in (tmp_path / "whole", whole):
        model = retrofit(source, family, **options)
        assert torch.equal(model(INPUT_IDS).logits, expected)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == is_tied
        assert model.config.tie_word_embeddings == is_tied
        assert model.generation_config.max_new_tokens == 7
        assert model.num_parameters() < whole.num_parameters()
    model.save_pretrained(tmp_path / "recurrent")
    loaded = load_pretrained(AutoModelForCausalLM, tmp_path / "recurrent")
    assert torch.equal(loaded(INPUT_IDS).logits, expected)
    if family == "looped":
        unroll(loaded).save_pretrained(tmp_path / "plain")
        plain = load_pretrained(AutoModelForCausalLM, tmp_path / "plain")
        assert torch.equal(plain(INPUT_IDS).logits, expected)


def test_modules_move_and_no_weight_is_copied():
    whole = tiny_composite("mistral3")
    weights = {parameter.data_ptr() for parameter in whole.parameters()}
    language_model = text_part(whole)
    assert {parameter.data_ptr() for parameter in language_model.parameters()} <= weights
    assert language_model.config is whole.config.text_config
    plain = LlamaForCausalLM(tiny_backbone("llama"))
    assert text_part(plain) is plain


@torch.no_grad()
def test_scan_takes_it():
    whole = tiny_composite("gemma3")
    windows = [INPUT_IDS[0]]
    logits = whole(input_ids=INPUT_IDS[:1]).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, INPUT_IDS[0, 1:]).exp()
    result = scan_layer_ranges(whole, windows, [(1, 1)], [2], window=16)
    assert result.base_perplexity == pytest.approx(float(expected), rel=1e-5)


@pytest.fixture(scope="module", params=COMMANDS)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("composites") / request.param
    tiny_composite(request.param).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture
def hf_loop(monkeypatch, capsys):
    # transformers would read the words by the rules of the model type's own tokenizer
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *arguments, **options: TOKENIZER)

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf-loop", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


def test_every_command_takes_a_composite_checkpoint(folder, hf_loop, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("1<->2 2<->3 " * 10)
    for arguments in (
        ["generate", folder, "1<->2", "--max-new-tokens", 2, "--loops", "1,2", "--core", "1-2"],
        ["scan", folder, "--text", text, "--max-length", 1, "--stride", 2, "--output-dir", tmp_path / "scan"],
        ["sweep", folder, "--text", text, "--loops", "1,2", "--output-dir", tmp_path / "sweep"],
        ["check", folder, "--weights"],
        ["retrofit", folder, tmp_path / "looped", "--core", "1-2"],
        ["unroll", tmp_path / "looped", tmp_path / "plain", "--num-loops", 2],
    ):
        code, _, error = hf_loop(*arguments)
        assert code == 0, error
    whole = load_recurrent_model(str(folder))
    assert torch.equal(
        whole(INPUT_IDS).logits, load_recurrent_model(str(tmp_path / "looped"))(INPUT_IDS, num_loops=1).logits
    )
    code, _, error = hf_loop("convert", folder, tmp_path / "converted")
    assert code == 2
    assert "make it looped with hf_loop.retrofit" in error


@pytest.mark.parametrize("family", ["looped", "sleep"])
def test_training_starts_from_a_composite_checkpoint(folder, family, hf_loop, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("1<->2 2<->3 " * 20)
    fields = {"num_loops": 2, "core_layers": "1-2"} if family == "looped" else {"sleep_window": 8}
    sections = {
        "model": {"pretrained": str(folder), "family": family, "config": fields},
        "data": {"files": [str(text)], "tokenizer": str(folder), "block_size": 8, "num_eval_rows": 0},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True, "disable_tqdm": True},
    }
    if family == "looped":
        sections["training"] |= {"distillation_weight": 0.5}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(sections))
    code, _, error = hf_loop("train", tmp_path / "recipe.yaml")
    assert code == 0, error
    model_type = load_pretrained(AutoModelForCausalLM, tmp_path / "run").config.backbone_config.model_type
    assert model_type == decoder_config(folder).model_type


@pytest.mark.parametrize("part", ["language_model", "vis"])
@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_a_damaged_composite_checkpoint_is_refused(folder, part, damage, tmp_path):
    shutil.copytree(folder, tmp_path / "damaged")
    file = tmp_path / "damaged" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if part in name and tensor.ndim == 2)
    if damage == "missing":
        del tensors[name]
    elif damage == "unexpected":
        tensors[f"{name}_of_another_model"] = torch.zeros(2)
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"the tensors of {tmp_path / 'damaged'} are not those of .*: [12] {damage} "):
        retrofit(tmp_path / "damaged")


def clip(folder):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPModel(CLIPConfig(text_config=sizes, vision_config=sizes | {"image_size": 8, "patch_size": 8})).save_pretrained(
        folder
    )
    return "no causal language model for its text part clip_text_model"


def without_a_class(folder):
    tiny_composite("llava").save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(file.read_text().replace("LlavaForConditionalGeneration", "Llava2"))
    return "no class Llava2, which the config.json of .* names: load its llama part by itself, saved as a Llama"


def wants_an_image(folder):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    parts = {
        "vision_config": sizes | {"image_size": 8, "patch_size": 8},
        "qformer_config": sizes,
        "text_config": {"model_type": "opt", "ffn_dim": 16, "word_embed_proj_dim": 16, "vocab_size": 40, **sizes},
    }
    Blip2ForConditionalGeneration(Blip2Config(**parts)).save_pretrained(folder)
    return "does not run on text alone .*: load its opt part by itself, saved as a OPTForCausalLM"


@pytest.mark.parametrize("make", [clip, without_a_class, wants_an_image])
def test_what_cannot_be_taken_out_says_what_to_load(make, hf_loop, tmp_path):
    message = make(tmp_path / "whole")
    TOKENIZER.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match=message):
        load_decoder(tmp_path / "whole")
    before = set(tmp_path.rglob("*"))
    code, _, error = hf_loop("retrofit", tmp_path / "whole", tmp_path / "looped")
    assert code == 2
    assert re.search(message, error.splitlines()[-1])
    assert set(tmp_path.rglob("*")) == before


def test_a_head_that_computes_something_else_is_refused(monkeypatch):
    whole = tiny_composite("llava")
    forward = type(whole).forward

    def scaled(self, *arguments, **options):
        outputs = forward(self, *arguments, **options)
        outputs.logits = outputs.logits * 1.5
        return outputs

    monkeypatch.setattr(type(whole), "forward", scaled)
    with pytest.raises(ValueError, match="taken out as LlamaForCausalLM, computes other logits than LlavaFor"):
        text_part(whole)
    with pytest.raises(ValueError, match="got LlavaModel, which has no head over the vocabulary"):
        text_part(whole.model)


@torch.no_grad()
def test_a_quantized_whole_stays_quantized(tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    tiny_composite("mistral3").save_pretrained(tmp_path / "whole")
    quantized = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    whole = Mistral3ForConditionalGeneration.from_pretrained(tmp_path / "whole", quantization_config=quantized)
    expected = whole(input_ids=INPUT_IDS).logits
    looped = retrofit(whole, num_loops=2)
    assert torch.equal(looped(INPUT_IDS, num_loops=1).logits, expected)
    looped.save_pretrained(tmp_path / "looped")
    loaded = load_pretrained(AutoModelForCausalLM, tmp_path / "looped")
    assert loaded.get_memory_footprint() == looped.get_memory_footprint()
    torch.testing.assert_close(loaded(INPUT_IDS, num_loops=1).logits, expected, atol=1e-6, rtol=1e-6)
