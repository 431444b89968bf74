import json
from importlib.resources import files

import pytest
from huggingface_hub import ModelCard, ModelCardData
from transformers import LlamaConfig

from hf_loop.evaluation import LoopCurve, ModelCardFacts, Results, render_model_card, write_model_card
from hf_loop.evaluation.hub_card import STUB_SENTENCE, TRAINER_SENTENCE, write_card_before_push
from hf_loop.models import LoopedConfig, LoopedForCausalLM, LoopedForSequenceClassification


BACKBONE = LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
CURVE = LoopCurve("accuracy", "sampled depth", [1, 2, 4, 8], [0.31, 0.5, 1.0, 0.99], 4.0, [0.1, 0.2, 0.97, 0.95])
OTHER = LoopCurve("accuracy", "fixed | depth", [1, 4], [0.4, 0.6], 4.0)


def looped_config(**fields):
    return LoopedConfig(backbone_config=BACKBONE, num_prelude_layers=1, num_coda_layers=1, num_loops=4, **fields)


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "shell-game"
    LoopedForCausalLM(looped_config()).save_pretrained(folder)
    return folder


def test_a_card_with_measurements(model_folder):
    Results(
        curves=[CURVE, OTHER, LoopCurve("perplexity", "text", [1, 4], [20.0, 10.0])],
        command="hf-loop quickstart --seed 3",
        seed=3,
        datasets=["shell_game"],
        license="apache-2.0",
        base_model="me/base",
        loop_sampling="uniform from 2 to 6",
        prompt='a "quoted" prompt',
        notes=["It only knows three cups."],
    ).save(model_folder)
    (model_folder / "tokenizer_config.json").write_text("{}")
    path = write_model_card(model_folder)

    card = ModelCard.load(path)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["shell_game"]
    assert card.data.base_model == "me/base"
    assert card.data.tags == ["hf_loop", "looped-transformer", "recurrent-depth", "looped_lm"]
    for sentence in (
        "# shell-game",
        "| layers | 1 prelude, 1 core (looped), 1 coda |",
        "| trained depth | 4 loops (in training: uniform from 2 to 6) |",
        "| safe range (accuracy) | 4 to 8 loops |",
        "![accuracy over loops](figures/accuracy_over_loops.png)",
        "| loops | sampled depth | sampled depth, whole sequences | fixed / depth |",
        "| 2 | 0.500 | 0.200 | – |",
        "| 4 | 1.000 | 0.970 | 0.600 |",
        "The trained depth is not known, so no safe range is stated.",
        'tokenizer("a \\"quoted\\" prompt", return_tensors="pt")',
        "trust_remote_code=True",
        "num_loops=4",
        "hf-loop quickstart --seed 3",
        "Seed 3. Data: shell_game.",
        "- It only knows three cups.",
        # one layer of two heads of eight numbers, keys and values, four bytes each
        "Each further loop adds 128 bytes of key-value cache for every token (`float32`)",
        "| 4 | 768 |",
    ):
        assert sentence in card.content, sentence
    assert "No licence" not in card.content
    assert (model_folder / "figures" / "accuracy_over_loops.png").is_file()
    assert (model_folder / "figures" / "perplexity_over_loops.png").is_file()


def test_a_card_without_measurements_says_so(model_folder):
    card = ModelCard.load(write_model_card(model_folder))
    assert "Nothing was measured on this model yet" in card.content
    assert "No licence was stated" in card.content
    assert "The command was not recorded" in card.content
    assert card.data.license is None
    assert not (model_folder / "figures").exists()


def test_the_snippet_in_the_card_runs(model_folder, monkeypatch):
    facts = ModelCardFacts.from_folder(model_folder, repo_id=str(model_folder))
    snippet = render_model_card(facts).split("```python\n")[1].split("```")[0]
    variables = {}
    exec(snippet, variables)
    assert variables["outputs"].shape == (1, 3 + 32)


def test_facts_of_a_classifier(tmp_path):
    LoopedForSequenceClassification(looped_config(num_labels=2)).save_pretrained(tmp_path)
    facts = ModelCardFacts.from_folder(tmp_path, repo_id="me/classifier")
    assert (facts.auto_class, facts.pipeline_tag) == (
        "AutoModelForSequenceClassification",
        "text-classification",
    )
    assert "outputs = model(**inputs, num_loops=4)" in render_model_card(facts)


def test_shared_weights_are_counted_once(model_folder):
    model = LoopedForCausalLM(looped_config())
    assert ModelCardFacts.from_folder(model_folder).num_parameters == model.num_parameters()


def test_a_folder_without_a_looped_model_gets_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        write_model_card(tmp_path)
    BACKBONE.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'llama', which has no loops"):
        write_model_card(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_the_template_is_found():
    # the wheel carries it beside the module; a checkout reads model_cards/template.md
    packaged = files("hf_loop.evaluation") / "model_card_template.md"
    card = render_model_card(
        ModelCardFacts("me/m", "t", "AutoModel", "p", "llama", 0, 1, 0, 2, "none", "input", "f", {}, 0)
    )
    assert "# m\n" in card
    assert not packaged.is_file() or "{{ card_data }}" in packaged.read_text()


def stub_card(tags):
    data = ModelCardData(tags=tags, library_name="transformers")
    return ModelCard.from_template(data, model_description=f"Pushed on the Hub. {STUB_SENTENCE}")


def test_a_push_replaces_the_stub_and_takes_the_measurements_along(model_folder, tmp_path):
    Results(curves=[CURVE]).save(model_folder)
    model = LoopedForCausalLM.from_pretrained(model_folder)
    upload = tmp_path / "upload"
    model.save_pretrained(upload)
    stub_card(["mine"]).save(upload / "README.md")
    write_card_before_push(model, upload, "me/shell-game")
    card = ModelCard.load(upload / "README.md")
    assert '.from_pretrained("me/shell-game")' in card.content
    assert "| safe range (accuracy) | 4 to 8 loops |" in card.content
    assert card.data.tags[-1] == "mine"
    assert json.loads((upload / "results.json").read_text())["curves"][0]["label"] == "sampled depth"
    assert (upload / "figures" / "accuracy_over_loops.png").is_file()


def test_a_push_of_changed_weights_does_not_claim_the_old_measurements(model_folder, tmp_path):
    Results(curves=[CURVE]).save(model_folder)
    model = LoopedForCausalLM.from_pretrained(model_folder)
    for parameter in model.parameters():
        parameter.data += 1
    upload = tmp_path / "upload"
    model.save_pretrained(upload)
    write_card_before_push(model, upload, "me/shell-game")
    assert "Nothing was measured" in (upload / "README.md").read_text()
    assert not (upload / "results.json").exists()


TRAINER_CARD = f"""---
library_name: transformers
license: mit
tags:
- generated_from_trainer
---

<!-- {TRAINER_SENTENCE} access to. -->

# run

## Training procedure

### Training hyperparameters

- learning_rate: 0.001

### Training results

| Loss | Step |
|:----:|:----:|
| 1.5  | 2    |

### Framework versions

- Transformers 5
"""


def test_the_trainers_summary_becomes_a_section(model_folder):
    (model_folder / "README.md").write_text(TRAINER_CARD)
    Results(curves=[CURVE]).save(model_folder)
    write_card_before_push(LoopedForCausalLM(looped_config()), model_folder, "me/run")
    card = ModelCard.load(model_folder / "README.md")
    assert "## Training\n\n- learning_rate: 0.001\n" in card.content
    assert "| 1.5  | 2    |\n\n## How to reproduce" in card.content
    assert "| safe range (accuracy) | 4 to 8 loops |" in card.content
    assert card.data.license == "mit"
    assert card.data.tags[-1] == "generated_from_trainer"


def test_a_push_leaves_a_written_card_alone(model_folder):
    model = LoopedForCausalLM.from_pretrained(model_folder)
    (model_folder / "README.md").write_text("# Mine\n")
    write_card_before_push(model, model_folder, "me/shell-game")
    assert (model_folder / "README.md").read_text() == "# Mine\n"
