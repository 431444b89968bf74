"""What the documents say is so: examples run, links lead somewhere, and commands, options and files exist."""

import re
import runpy
from dataclasses import fields

import pytest
import typer
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

import hf_loop
from hf_loop.cli.main import app
from hf_loop.models import FAMILIES
from hf_loop.trainer.data import byte_tokenizer
from hf_loop.trainer.recipe import arguments_class, load_recipe
from hf_loop.trainer.sections import DataSection, ModelSection

from .documents import (
    DOCUMENTS,
    GUIDES,
    README,
    RECIPES,
    ROOT,
    SCRIPTS,
    anchors,
    blocks,
    commands,
    links,
    name_of,
    script,
    tables,
)
from .retrofitting.converters import test_huginn as huginn
from .retrofitting.converters.recurrent_reference import write_checkpoint


COMMAND = re.compile(r"hf-loop ([a-z]+)")
# files of the repository, by the folders that have them
FILE = re.compile(r"(?<![\w/])(?:hf_loop|training|tests|model_cards)/[\w/]+(?:\.\w+)?")
LONGEST_README = 150


def parametrize(documents):
    return pytest.mark.parametrize("document", documents, ids=name_of)


@pytest.fixture
def known_families():
    """Families that an example registers are forgotten afterwards."""
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """A folder with tiny checkpoints under the names on the Hub that the examples load."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    set_seed(0)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=30,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    smollm2 = tmp_path / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
    LlamaForCausalLM(config).save_pretrained(smollm2)
    tokenizer.save_pretrained(smollm2)
    source = tmp_path / "tomg-group-umd" / "huginn-0125"
    source.parent.mkdir()
    write_checkpoint(source, huginn.CONFIG, huginn.make_tensors(huginn.CONFIG))


@parametrize([document for document in GUIDES if blocks(document, "python")])
def test_the_examples_run(document, checkpoints, known_families, tmp_path):
    program = tmp_path / "example.py"
    program.write_text(script(document))
    runpy.run_path(str(program), run_name="__main__")


@parametrize(DOCUMENTS)
def test_links_inside_the_repository_resolve(document):
    for link in links(document):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@parametrize(DOCUMENTS)
def test_the_commands_that_are_named_exist(document):
    for name in COMMAND.findall(document.read_text()):
        assert name in typer.main.get_command(app).commands, f"hf-loop {name}"


@parametrize([path for path in (*DOCUMENTS, *RECIPES, *SCRIPTS) if commands(path)])
def test_the_options_of_commands_exist(document):
    known = typer.main.get_command(app).commands
    for program, name, *words in commands(document):
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if program == "hf-loop":
            assert options <= {option for parameter in known[name].params for option in parameter.opts}, (name, words)
        elif name != "training/train.py":
            source = (ROOT / name).read_text()
            assert all(f'"{option}"' in source for option in options), (name, words)
        if "train" in name and words and (ROOT / words[0]).is_file():
            overrides = [word for flag, word in zip(words, words[1:]) if flag == "--set" and not is_placeholder(word)]
            load_recipe(ROOT / words[0], ["training.bf16=false", "training.use_cpu=true", *overrides])


def is_placeholder(override: str) -> bool:
    """Whether an override leaves its value to the reader, as in `training.seed=S`."""
    return override.rpartition("=")[2].isupper()


@parametrize([document for document in GUIDES if any("field of" in heading for heading in tables(document))])
def test_the_fields_in_tables_exist(document):
    for heading, names in tables(document).items():
        if heading.startswith("field of "):
            config_class = getattr(hf_loop, heading.removeprefix("field of ").strip("`"))
            assert names <= {field.name for field in fields(config_class)}, heading


def test_the_keys_of_recipes_exist():
    classes = (ModelSection, DataSection, *map(arguments_class, FAMILIES))
    known = {field.name for section in classes for field in fields(section)}
    (guide,) = [document for document in GUIDES if "key" in tables(document)]
    assert tables(guide)["key"] <= known
    for block in blocks(guide, "yaml"):
        assert ModelSection(**yaml.safe_load(block.text)["model"])


@parametrize(GUIDES)
def test_the_files_that_are_named_exist(document):
    for path in FILE.findall(document.read_text()):
        assert (ROOT / path).exists(), path


def test_the_readme_is_one_page():
    assert len(README.read_text().splitlines()) <= LONGEST_README


def test_the_readme_names_every_command_and_links_the_decoders():
    text = README.read_text()
    assert typer.main.get_command(app).commands.keys() == set(re.findall(r"^\| `hf-loop ([a-z]+)", text, re.MULTILINE))
    assert "(hf_loop/models/README.md#decoders)" in text
