import json

import pytest
from huggingface_hub import ModelCard, ModelCardData
from transformers import LlamaConfig

from hf_loop.analysis.inspection_results import Inspection
from hf_loop.evaluation import LoopCurve, ModelCardFacts, Results, render_model_card, write_model_card
from hf_loop.evaluation.bench_results import Bench
from hf_loop.evaluation.card_template import TEMPLATES, read_template
from hf_loop.evaluation.hub_card import STUB_SENTENCE, TRAINER_SENTENCE, write_card, write_card_before_push
from hf_loop.models import (
    FAMILIES,
    LoopedConfig,
    LoopedForCausalLM,
    LoopedForSequenceClassification,
    family_of,
    register_family,
)
from hf_loop.published_files import published_files

from ..models.composed_variants import make_composed
from ..models.families import CAUSAL_FAMILIES
from ..toy_family import FAMILY as TOY
from ..toy_family import ToyConfig, ToyForCausalLM
from .bench_example import example


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
        "| schedule | 1+1+1 layers (prelude, core, coda), 4 loops |",
        "| layer calls of a pass | 2 + 1 × loops |",
        "| `num_loops` | `4` |",
        "| `injection` | `none` |",
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


def test_a_folder_without_a_model_of_a_family_gets_a_clear_error(tmp_path):
    with pytest.raises(OSError, match=r"no config\.json"):
        write_model_card(tmp_path)
    BACKBONE.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'llama', which is of no family of hf_loop"):
        write_model_card(tmp_path)
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_templates_are_found(template):
    # the wheel carries them beside the module; a checkout reads those in model_cards/
    assert "{{ card_data }}" in read_template(template)


def snippet_of(path):
    return path.read_text().split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_every_family_has_a_card_from_its_record(family, tmp_path):
    model = CAUSAL_FAMILIES[family]()
    model.save_pretrained(tmp_path)
    path = write_card(tmp_path, str(tmp_path))
    card, record = ModelCard.load(path), family_of(model.config)
    assert card.data.tags == ["hf_loop", *model.family_tags, model.config.model_type]
    assert f"(`{model.config.model_type}`): a schedule over the layers of a `llama` decoder." in card.text
    assert f"| schedule | {record.describe(model.config)} |" in card.text
    for name in record.own_fields:
        assert f"| `{name}` | `{getattr(model.config, name)}` |" in card.text, name
    # what is said of loops is said of models with loops, and of a cache that grows where it does
    has_loops = model.config.has_loops
    for sentence in ("| trained depth |", "## Behaviour over loops", "num_loops=", "- Loop counts outside"):
        assert (sentence in card.text) == has_loops, sentence
    assert ("key-value cache" in card.text) == (model.config.kind == "depth")
    assert "Nothing was measured on this model yet" in card.text
    variables = {}
    exec(snippet_of(path), variables)
    assert variables["outputs"].shape[0] == 1


def test_the_card_of_a_composed_model_has_both_schedules(tmp_path):
    model = make_composed("feedback", "looped")
    model.save_pretrained(tmp_path)
    text = write_card(tmp_path).read_text()
    assert "(`feedback_lm`): a schedule over the layers of a `llama` decoder." in text
    assert "| schedule | blocks of 4 tokens, 1 segments, a memory of 2 |" in text
    assert "| schedule of a pass (`looped_lm`) | 1+2+1 layers (prelude, core, coda), 2 loops |" in text
    assert "| layer calls of a pass | 2 + 2 × loops |" in text and "| trained depth | 2 loops |" in text
    assert "Of `feedback_lm`:" in text and "Of `looped_lm`, the model in its `backbone_config`:" in text
    assert "| `block_size` | `4` |" in text and "| `injection` | `add` |" in text
    assert "## Memory" not in text and "so does the cache" not in text


def test_a_family_from_outside_has_a_card_too(tmp_path):
    register_family(TOY)
    try:
        model = ToyForCausalLM(ToyConfig(backbone_config=BACKBONE, gain=2.0))
        model.save_pretrained(tmp_path)
        # as a push does
        model.write_card(str(tmp_path), "me/toy")
        path = tmp_path / "README.md"
        assert "| schedule | a gate of 2.0 |" in path.read_text() and "| `gain` | `2.0` |" in path.read_text()
        assert "| layer calls of a pass | 3 |" in path.read_text()
        # three layers of two heads of eight numbers, keys and values, four bytes each
        assert "The key-value cache grows by 384 bytes for every token (`float32`)." in path.read_text()
        assert 'AutoModelForCausalLM.from_pretrained("me/toy")' in snippet_of(path)
        variables = {}
        exec(snippet_of(path).replace("me/toy", str(tmp_path)), variables)
        assert variables["outputs"].shape == (1, 3 + 32)
    finally:
        del FAMILIES[TOY.name]


def test_a_class_that_is_not_of_the_family_is_refused(tmp_path):
    looped_config(architectures=["LoopedForDancing"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'LoopedForDancing' is none of the looped family's: LoopedModel, LoopedForC"):
        write_card(tmp_path)


def stub_card(tags):
    data = ModelCardData(tags=tags, library_name="transformers")
    return ModelCard.from_template(data, model_description=f"Pushed on the Hub. {STUB_SENTENCE}")


def test_a_benchmark_of_decoding_is_a_section(model_folder):
    example().save(model_folder / "bench.json")
    card = write_model_card(model_folder).read_text()
    assert "\n## Ways to decode with tiny\n" in card and "\n### Batch 1\n" in card
    assert "](figures/decoding.png)" in card and "| kl:0.1 | 1.50 | 11 | 50.00 % |" in card
    assert {"bench.json", "figures/decoding.png"} <= set(published_files(model_folder))
    # interrupted before the first time
    Bench("tiny", 2, {}).save(model_folder / "bench.json")
    assert "Ways to decode" not in write_model_card(model_folder).read_text()


def inspection(**fields):
    numbers = {name: [None, 0.5] for name in ("step_norm", "cosine", "acceleration", "distance_to_final")}
    found = {
        **{"label": "tiny", "prompt": "ball:1 `1<->2`", "readout": "answer", "trained_loops": 4, "positions": [2, 3]},
        **{"tokens": ["ball:1", "`1<->2`"], "top": [["a", "b"], ["a", "c|"]]},
        **{"probability": [[0.5, 0.25], [0.5, 0.75]]},
        **{"periods": [0, 1], "since": [0, 2]},
    }
    return Inspection(**{**numbers, **found, **fields})


def test_a_look_inside_is_a_section(model_folder):
    inspection().save(model_folder / "inspect.json")
    card = write_model_card(model_folder).read_text()
    assert "\n## Inside the loops\n" in card and "](figures/inside_the_loops.png)" in card
    answer = "after `` `1<->2` `` it is `c|` (probability 0.75) at 2 loops, from loop 2 on."
    assert answer in card
    assert "A loop moves the state by 0.5 of its norm in loop 2 and by 0.5 in loop 2." in card
    assert {"inspect.json", "figures/inside_the_loops.png"} <= set(published_files(model_folder))
    inspection(top=[["a", "b"], ["a", "b"]], readout="layer 1").save(model_folder / "inspect.json")
    card = write_model_card(model_folder).read_text()
    assert "The logit lens of layer 1 after every loop" in card and "at 2 loops, at once." in card
    (model_folder / "inspect.json").unlink()
    assert "Inside the loops" not in write_model_card(model_folder).read_text()


def test_a_push_replaces_the_stub_and_takes_the_measurements_along(model_folder, tmp_path):
    Results(curves=[CURVE]).save(model_folder)
    example().save(model_folder / "bench.json")
    inspection().save(model_folder / "inspect.json")
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
    assert "## Ways to decode with tiny" in card.content and (upload / "bench.json").is_file()
    assert "## Inside the loops" in card.content and (upload / "inspect.json").is_file()
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
