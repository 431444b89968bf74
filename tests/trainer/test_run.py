"""Running recipes: what is saved, where, and what is refused."""

import json
import logging
import os
import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from hf_loop import retrofit
from hf_loop.trainer.checkpoint_trainer import run_lock
from hf_loop.trainer.data import byte_tokenizer
from hf_loop.trainer.family_model import build_model, check_model
from hf_loop.trainer.family_trainer import load_teacher
from hf_loop.trainer.recipe import ModelSection, load_recipe
from hf_loop.trainer.run import run_recipe

from .tiny import tiny_model


BACKBONE = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


@pytest.fixture
def make_recipe(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the ball is under the second cup. " * 20)
    sections = {
        "model": {"backbone": BACKBONE, "config": {"num_loops": 2, "injection": "add"}},
        "data": {"files": [str(text)], "tokenizer": "bytes", "block_size": 16, "num_eval_rows": 4},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "save_steps": 2,
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    return lambda *overrides: load_recipe(path, overrides)


def test_a_run_saves_model_tokenizer_and_recipe(make_recipe, tmp_path):
    recipe = make_recipe("training.seed=5")
    result = run_recipe(recipe)
    run = tmp_path / "run"
    assert result.output_dir == str(run)
    assert 0 < result.eval_loss < 10

    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    assert (type(model).__name__, model.config.num_loops) == ("LoopedForCausalLM", 2)
    assert model.num_parameters() == result.num_parameters
    assert len(tokenizer) == model.config.vocab_size == 257
    assert model.config.eos_token_id == tokenizer.eos_token_id
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert [entry["mean_loops"] >= 1 for entry in history if "loss" in entry] == [True] * 4
    assert not list(run.glob("*.tmp"))

    # the saved recipe holds the overrides, and is a recipe
    copy = load_recipe(run / "recipe.yaml", [f"training.output_dir={tmp_path / 'again'}"])
    assert copy.training.seed == 5
    assert run_recipe(copy).train_loss == result.train_loss


# the text makes 42 rows, 38 to train on: 6 steps of 8 read a stream to its end and begin it anew
STREAM = ("data.streaming=true", "training.max_steps=6", "training.save_steps=4")


@pytest.mark.parametrize("overrides", [(), STREAM], ids=["packed", "streaming"])
def test_resuming_repeats_the_run(make_recipe, tmp_path, overrides):
    whole = run_recipe(make_recipe(*overrides))
    folder = f"training.output_dir={tmp_path / 'cut'}"
    run_recipe(make_recipe(folder, "training.save_total_limit=3", *overrides))
    last = max((tmp_path / "cut").glob("checkpoint-*"))
    for path in (last / "model.safetensors", tmp_path / "cut" / "model.safetensors"):
        path.unlink()
    last.rename(tmp_path / "lost")
    resumed = run_recipe(make_recipe(folder, "training.resume_from_checkpoint=true", *overrides))
    assert resumed.eval_loss == whole.eval_loss
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("run", "cut"))
    for weight, expected in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, expected)


def test_output_folder_that_is_not_empty_is_refused_and_kept(make_recipe, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="training.output_dir is not empty: .*run; .*--resume"):
        run_recipe(make_recipe())
    assert [path.name for path in run.iterdir()] == ["precious.txt"]


def test_resuming_needs_a_checkpoint(make_recipe, tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint to resume from"):
        run_recipe(make_recipe("training.resume_from_checkpoint=true"))
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="No valid checkpoint"):
        run_recipe(make_recipe("training.resume_from_checkpoint=true"))


def test_output_dir_that_is_a_file_is_refused(make_recipe, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="training.output_dir must be a folder"):
        run_recipe(make_recipe())


def test_pretrained_models_are_looped_in_single_precision(tmp_path):
    base = LlamaForCausalLM(tiny_model().config.backbone_config).eval()
    base.to(torch.bfloat16).save_pretrained(tmp_path)
    section = ModelSection(
        pretrained=str(tmp_path), config={"num_prelude_layers": 1, "num_loops": 2, "injection": "concat"}
    )
    tokenizer = byte_tokenizer()
    with pytest.raises(ValueError, match="must hold the tokenizer's 257 tokens, got vocab_size=32"):
        build_model(section, tokenizer)
    tokenizer = AutoTokenizerStub(32)
    model = build_model(section, tokenizer).eval()
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    input_ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids, num_loops=1).logits, base.float()(input_ids).logits)


@pytest.fixture
def base_folder(tmp_path):
    """A plain model with the tokenizer's vocabulary."""
    config = tiny_model().config.backbone_config
    config.update({"vocab_size": 257, "num_hidden_layers": 4, "initializer_range": 0.3})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def pretrained(base_folder, *overrides):
    return ("model.backbone=null", "model.config.injection=none", f"model.pretrained={base_folder}", *overrides)


def test_the_teacher_is_the_pretrained_model(make_recipe, base_folder, tmp_path):
    # one loop without injection is the teacher: there is nothing to learn, whatever the labels say
    recipe = make_recipe(
        *pretrained(
            base_folder, "model.config.core_layers=1-2", "training.distillation_weight=1", "training.max_steps=2"
        ),
        *("training.loop_sampling=fixed", "training.mean_loops=1"),
    )
    assert run_recipe(recipe).train_loss == 0
    healed, base = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "run", base_folder))
    for weight, expected in zip(healed.parameters(), base.parameters(), strict=True):
        assert torch.equal(weight, expected)
    assert not [path for path in (tmp_path / "run").rglob("*") if "teacher" in path.name]


@pytest.mark.parametrize(("fields", "dtype"), [((), torch.float32), (("training.bf16=true",), torch.bfloat16)])
def test_the_teacher_takes_the_type_that_training_computes_in(make_recipe, base_folder, fields, dtype):
    recipe = make_recipe(*pretrained(base_folder), *fields)
    assert load_teacher(recipe).dtype == dtype
    assert build_model(recipe.model, byte_tokenizer()).dtype == torch.float32


def test_a_looped_model_goes_on_training_with_its_layout(make_recipe, base_folder, tmp_path):
    looped = retrofit(base_folder, core_layers="1-1", num_loops=3, loop_lora_rank=2)
    looped.save_pretrained(tmp_path / "looped")
    recipe = make_recipe(*pretrained(tmp_path / "looped", "model.config={}", "training.max_steps=1"))
    run_recipe(recipe)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    layout = ("num_prelude_layers", "num_coda_layers", "num_loops", "loop_lora_rank")
    assert all(getattr(trained.config, name) == getattr(looped.config, name) for name in layout)
    before, after = looped.get_input_embeddings().weight, trained.get_input_embeddings().weight
    assert before.shape == after.shape
    assert not torch.equal(before, after)
    section = make_recipe(*pretrained(tmp_path / "looped", "model.config.core_layers=0-1")).model
    with pytest.raises(ValueError, match="model.config.core_layers cannot be chosen, got '0-1'"):
        check_model(section)


def test_layers_are_folded_with_an_update_for_each_loop(make_recipe, base_folder):
    fold = (
        "model.config.fold=average",
        "model.config.num_loops=2",
        "model.config.loop_lora_rank=4",
        "model.config.num_prelude_layers=0",
    )
    section = make_recipe(*pretrained(base_folder, *fold, "model.config.core_layers=0-1")).model
    check_model(section)
    model = build_model(section, byte_tokenizer())
    assert (model.config.num_core_layers, model.config.loop_lora_num_loops) == (1, 2)
    section = make_recipe(*pretrained(base_folder, *fold, "model.config.core_layers=0-2")).model
    with pytest.raises(ValueError, match="cannot share the 3 core layers evenly between num_loops=2"):
        check_model(section)


def test_layers_of_the_pretrained_model_are_chosen_and_dropped(make_recipe, base_folder):
    section = make_recipe(
        *pretrained(base_folder, "model.config.num_prelude_layers=0", "model.config.core_layers=2-2")
    ).model
    check_model(section)
    model = build_model(section, byte_tokenizer())
    assert model.model.layer_counts() == (0, 1, 1)
    for overrides, message in (
        (("model.config.core_layers=2-4",), "`core_layers` 2-4 passes the end"),
        (("model.config.core_layers=3-2",), "FIRST not above LAST"),
        (("model.config.num_prelude_layers=2", "model.config.core_layers=1-2"), "`num_prelude_layers` 2 overlaps"),
    ):
        with pytest.raises(ValueError, match=message):
            check_model(make_recipe(*pretrained(base_folder, *overrides)).model)


class AutoTokenizerStub:
    """A tokenizer of which only the size matters."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"hiden_size": 8}, "unknown key 'hiden_size' in model.backbone; did you mean 'hidden_size'?"),
        ({"model_type": "lama"}, "model.backbone.model_type must be a model type of transformers, got 'lama'"),
        ({"model_type": ["llama"]}, "model.backbone.model_type must be a model type of transformers, got ['llama']"),
        ({"hidden_size": [8]}, "`model.backbone`: Field 'hidden_size' expected int, got list (value: [8])"),
        ({"vocab_size": 100}, "must hold the tokenizer's 257 tokens, got vocab_size=100"),
    ],
)
def test_bad_backbones(backbone, message):
    with pytest.raises(ValueError) as error:
        build_model(ModelSection(backbone={**BACKBONE, **backbone}), byte_tokenizer())
    assert message in str(error.value)


def test_no_core_is_refused_before_anything_is_written(make_recipe, tmp_path):
    with pytest.raises(ValueError, match="no core layer"):
        run_recipe(make_recipe("model.config.num_prelude_layers=2", "model.config.num_coda_layers=1"))
    assert not (tmp_path / "run").exists()


def test_the_second_run_into_a_folder_is_refused(make_recipe, tmp_path):
    ready, done = os.pipe(), os.pipe()
    holder = os.fork()
    if not holder:
        with run_lock(str(tmp_path / "run")):
            os.write(ready[1], b"1")
            os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        with pytest.raises(ValueError, match="run is in use: another process is writing into it"):
            run_recipe(make_recipe())
        assert not (tmp_path / "run").exists()
    finally:
        os.write(done[1], b"1")
        os.waitpid(holder, 0)
    run_recipe(make_recipe())


def test_a_changed_recipe_is_refused_or_named(make_recipe, tmp_path, caplog):
    run_recipe(make_recipe())
    resume = "training.resume_from_checkpoint=true"
    for override, message in (
        ("data.block_size=8", "data.block_size is 8, was 16"),
        ("data.num_eval_rows=2", "data.num_eval_rows is 2, was 4"),
        ("model.config.num_loops=3", "num_loops is 3, was 2"),
        ("model.backbone.intermediate_size=48", "backbone_config.intermediate_size is 48, was 32"),
        ("training.learning_rate=1e-3", "learning_rate is 0.001, was 0.01"),
    ):
        with pytest.raises(ValueError, match=f"is not the one of .*checkpoint-4: {message}"):
            run_recipe(make_recipe(resume, override))
    # what moves, what is logged and how long the run is may change
    moved = (tmp_path / "text.txt").rename(tmp_path / "moved.txt")
    caplog.clear()
    logger = logging.getLogger("transformers")
    logger.propagate = True
    with caplog.at_level(logging.WARNING, "transformers"):
        run_recipe(make_recipe(resume, f"data.files=[{moved}]", "training.max_steps=5", "training.logging_steps=2"))
    logger.propagate = False
    assert [record.getMessage() for record in caplog.records if "other arguments" in record.getMessage()] == [
        f"The run goes on from {tmp_path / 'run'}/checkpoint-4 with other arguments: training.max_steps is 5, was 4"
    ]


def test_the_mean_loss_of_a_resumed_run_is_that_of_all_its_steps(make_recipe, tmp_path):
    whole = run_recipe(make_recipe())
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    resumed = run_recipe(make_recipe("training.resume_from_checkpoint=true"))
    assert resumed.train_loss == pytest.approx(whole.train_loss)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lr_scheduler_kwargs={a: 1}", "training.lr_scheduler_type='linear', lr_scheduler_kwargs={'a': 1}: "),
        ("training.optim_args=fast", "training.optim='adamw_torch"),
        ("training.optim=lion_8bit", "training.optim='lion_8bit', .*bitsandbytes"),
        ("training.torch_compile_backend=nope", "training: 'NOPE' is not"),
        ("training.log_level=loud", "training: .*'loud'"),
        # sizes that do not fit each other
        ("model.backbone.num_key_value_heads=3", "^model: "),
    ],
)
def test_what_transformers_finds_out_later_names_its_section(make_recipe, override, message):
    with pytest.raises(ValueError, match=message):
        run_recipe(make_recipe(override))
