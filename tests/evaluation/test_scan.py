import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, LlamaForCausalLM, LlamaModel, set_seed

from hf_loop import retrofit
from hf_loop.evaluation import LayerScan, ScanCell, layer_ranges, perplexity_over_loops, scan_layer_ranges
from hf_loop.evaluation import scan_passes as passes_module
from hf_loop.evaluation.scan_passes import ScanPasses, calls_of_head, count_layer_calls

from ..models.tiny_backbones import tiny_backbone


NUM_LAYERS = 4
TOKENS = torch.randint(3, 97, (45,), generator=torch.Generator().manual_seed(0))
BOTH = ("replace", "damped")


def plain_model(model_type: str = "llama", seed: int = 0):
    # weights large enough that every range and loop count has a perplexity of its own
    set_seed(seed)
    return AutoModelForCausalLM.from_config(tiny_backbone(model_type, initializer_range=0.3)).eval()


@pytest.fixture
def model():
    return plain_model()


def plain_twin(model, cell: ScanCell, **options) -> float:
    """The same number by way of a retrofitted model of its own."""
    looped = retrofit(
        copy.deepcopy(model),
        num_prelude_layers=cell.first,
        num_coda_layers=NUM_LAYERS - 1 - cell.last,
        loop_update=cell.update,
    )
    return perplexity_over_loops(looped, TOKENS, [cell.num_loops], **options).values[0]


# gpt_neox names its parts differently, gemma3_text and granite do something to embeddings and logits, gemma3_text has
# two kinds of masks and rotary embeddings, qwen3_5_text has layers without attention
@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "gemma3_text", "granite", "qwen3_5_text"])
def test_every_cell_is_what_a_retrofitted_model_gives(model_type):
    model = plain_model(model_type)
    options = {"window": 16, "batch_size": 2}
    scan = scan_layer_ranges(model, TOKENS, layer_ranges(NUM_LAYERS), [2, 3], updates=BOTH, **options)
    assert len({cell.key for cell in scan.cells}) == len(scan.cells) == 10 * 2 * 2
    for cell in scan.cells:
        assert cell.perplexity == pytest.approx(plain_twin(model, cell, **options), rel=1e-5), cell
    # the cells differ by far more than that
    assert len({f"{cell.perplexity:.3g}" for cell in scan.cells}) > 30
    one_loop = ScanCell(0, 3, 1, "replace", 0.0, 0.0)
    assert scan.base_perplexity == pytest.approx(plain_twin(model, one_loop, **options), rel=1e-5)
    assert scan.num_tokens == 15 + 15 + 12


def test_logits_in_small_pieces_and_batches_change_nothing(model, monkeypatch):
    ranges = [(1, 2), (0, 3)]
    whole = scan_layer_ranges(model, TOKENS, ranges, [2], window=16)
    monkeypatch.setattr(passes_module, "LOGITS_PER_CHUNK", 3 * 97)
    pieces = scan_layer_ranges(model, list(TOKENS.split(16)), ranges, [2], window=99, batch_size=8)
    for one, other in zip(whole.cells, pieces.cells, strict=True):
        assert one.key == other.key
        assert one.perplexity == pytest.approx(other.perplexity, rel=1e-5)


def test_the_standard_error_is_that_of_the_paired_difference(model):
    def losses(model, **options):
        logits = model(TOKENS[None], use_cache=False, **options).logits[0, :-1].double()
        return torch.nn.functional.cross_entropy(logits, TOKENS[1:], reduction="none")

    (cell,) = scan_layer_ranges(model, TOKENS, [(1, 2)], [3]).cells
    with torch.no_grad():
        base = losses(model)
        difference = losses(retrofit(model, num_prelude_layers=1, num_coda_layers=1), num_loops=3) - base
    expected = float(difference.std(correction=0)) / len(difference) ** 0.5
    assert cell.standard_error == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("counts", [{"replace": [2]}, {"replace": [2, 4], "damped": []}, {"damped": [2, 3]}])
@pytest.mark.parametrize(("first", "last"), [(0, 3), (1, 1), (3, 3)])
def test_it_makes_as_many_layer_calls_as_its_docstring_says(model, counts, first, last):
    calls = []
    for layer in model.base_model.layers:
        layer.register_forward_hook(lambda *arguments: calls.append(1))
    told = []
    with torch.no_grad():
        passes = ScanPasses(model, [TOKENS[None]], {first, last + 1}, told.append)
        assert len(calls) == NUM_LAYERS
        calls.clear()
        told.clear()
        passes.measure(first, last, counts)
    assert len(calls) == count_layer_calls(first, last, counts, NUM_LAYERS, calls_of_head=0)
    # the progress bar ends at its total
    assert sum(told) == count_layer_calls(first, last, counts, NUM_LAYERS, calls_of_head(model))


def test_the_model_is_left_as_it_was(model):
    model.train()
    before = copy.deepcopy(model.state_dict())
    scan_layer_ranges(model, TOKENS, [(1, 2)], [2])
    assert model.training
    assert isinstance(model, LlamaForCausalLM)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_an_interrupted_scan_goes_on_where_it_was(model, tmp_path, monkeypatch):
    ranges = layer_ranges(NUM_LAYERS, max_length=2)
    whole = scan_layer_ranges(model, TOKENS, ranges, [2], updates=BOTH)
    measure, measured = ScanPasses.measure, []

    def interrupted(self, first, last, counts):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append((first, last))
        return measure(self, first, last, counts)

    path = tmp_path / "new" / "scan.json"
    monkeypatch.setattr(ScanPasses, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scan_layer_ranges(model, TOKENS, ranges, [2], updates=BOTH, path=path)
    assert len(LayerScan.load(path).cells) == 3 * 2
    measured.clear()
    monkeypatch.setattr(ScanPasses, "measure", lambda *args: measured.append(args[1:3]) or measure(*args))
    resumed = scan_layer_ranges(model, TOKENS, ranges, [2], updates=BOTH, path=path)
    assert measured == ranges[3:]
    assert resumed == whole == LayerScan.load(path)


def test_a_second_scan_adds_what_the_first_did_not_measure(model, tmp_path, monkeypatch):
    path = tmp_path / "scan.json"
    scan_layer_ranges(model, TOKENS, [(0, 1), (1, 2)], [2, 3], path=path)
    wanted = []
    measure = ScanPasses.measure
    monkeypatch.setattr(ScanPasses, "measure", lambda *args: wanted.append(args[1:]) or measure(*args))
    scan = scan_layer_ranges(model, TOKENS, [(1, 2), (2, 2)], [3, 4], updates=BOTH, path=path)
    assert wanted == [(1, 2, {"replace": [4], "damped": [3, 4]}), (2, 2, {"replace": [3, 4], "damped": [3, 4]})]
    assert len(scan.cells) == 4 + 3 + 4
    # another folder's name for the same weights is the same model
    model.name_or_path = model.config._name_or_path = "elsewhere"
    wanted.clear()
    assert scan_layer_ranges(model, TOKENS, [(1, 2)], [2, 4], path=path) == scan
    assert wanted == []


def test_a_file_of_other_settings_is_refused_and_kept(model, tmp_path):
    path = tmp_path / "scan.json"
    scan_layer_ranges(model, TOKENS, [(1, 2)], [2], path=path, window=16)
    content = path.read_bytes()
    other_weights, other_config = plain_model(seed=1), plain_model()
    other_config.config.rms_norm_eps = 0.5
    for other, tokens, window, message in [
        (model, TOKENS, 15, "window 16 there, 15 here"),
        (model, TOKENS[:-1], 16, "tokens 45 there, 44 here"),
        (model, TOKENS.flip(0), 16, "text "),
        (other_weights, TOKENS, 16, "weights "),
        (other_config, TOKENS, 16, "config "),
        (plain_model().to(torch.bfloat16), TOKENS, 16, "dtype float32 there, bfloat16 here"),
    ]:
        with pytest.raises(ValueError, match=f"scan.json was measured with other settings .*{message}") as error:
            scan_layer_ranges(other, tokens, [(1, 2)], [2], path=path, window=window)
        assert "\n" not in str(error.value)
    assert path.read_bytes() == content


def test_one_changed_matrix_changes_the_fingerprint(model, tmp_path):
    path = tmp_path / "scan.json"
    scan_layer_ranges(model, TOKENS, [(1, 2)], [2], path=path)
    model.base_model.layers[2].self_attn.o_proj.weight.data += 1e-3
    with pytest.raises(ValueError, match="weights"):
        scan_layer_ranges(model, TOKENS, [(1, 2)], [2], path=path)


def test_a_state_that_overflows_is_an_infinite_perplexity(model, tmp_path):
    # the second pass through layer 1 meets numbers beyond float32; the first one does not
    embed = model.base_model.embed_tokens.weight.data
    embed *= 1e-3
    model.base_model.layers[1].register_forward_hook(
        lambda module, args, output: torch.where(args[0].abs().amax() > 1e4, torch.nan, output + 1e5)
    )
    path = tmp_path / "scan.json"
    scan = scan_layer_ranges(model, TOKENS, [(1, 1), (2, 2)], [2], path=path)
    assert [cell.perplexity == float("inf") for cell in scan.cells] == [True, False]
    assert json.loads(path.read_text())["cells"][0]["perplexity"] is None
    assert LayerScan.load(path).best(1)[0].key == (2, 2, "replace", 2)


def test_a_model_that_is_broken_itself_is_said_to_be(model, tmp_path):
    model.base_model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="own perplexity on this text is not finite in float32"):
        scan_layer_ranges(model, TOKENS, [(1, 2)], [2], path=tmp_path / "scan.json")
    assert list(tmp_path.iterdir()) == []


def test_progress_says_the_time_and_the_best_range(model, capsys):
    scan_layer_ranges(model, TOKENS, [(1, 2), (0, 3)], [2], progress=True)
    shown = capsys.readouterr().err
    assert "2 ranges to measure, about" in shown
    assert "100%" in shown
    assert "range 2/2, best " in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ranges": []}, "ranges is empty"),
        ({"ranges": [(2, 1)]}, r"\(2, 1\) runs backwards"),
        ({"ranges": [(0, 4)]}, r"\(0, 4\) passes the end: the model has the layers 0 to 3"),
        ({"ranges": [(-1, 2)]}, r"\(-1, 2\) does not fit"),
        ({"ranges": [(1, 2), (1, 2)]}, "each range once"),
        ({"ranges": [(1.0, 2)]}, "pairs of integers"),
        ({"loops": []}, "loops is empty"),
        ({"loops": [0]}, "got 0"),
        ({"loops": [2.5]}, "got 2.5"),
        ({"loops": [True]}, "got True"),
        ({"loops": [1, 2]}, "one loop is the model itself"),
        ({"loops": [2, 2]}, "each loop count once"),
        ({"updates": ()}, "one or both of replace, damped"),
        ({"updates": ("replaced",)}, "got .'replaced'."),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1"),
        ({"window": 1}, "window must be an integer of at least 2"),
        ({"input_ids": TOKENS[:1]}, "fewer than two tokens"),
    ],
)
def test_bad_input_gets_a_clear_error(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        scan_layer_ranges(**({"model": model, "input_ids": TOKENS, "ranges": [(1, 2)], "loops": [2]} | arguments))


def test_models_that_cannot_be_scanned_are_refused(model):
    with pytest.raises(ValueError, match="is a looped model already; sweep it instead"):
        scan_layer_ranges(retrofit(plain_model()), TOKENS, [(1, 2)], [2])
    with pytest.raises(ValueError, match="LlamaModel has none"):
        scan_layer_ranges(LlamaModel(model.config), TOKENS, [(1, 2)], [2])
    encoder = BertConfig(vocab_size=97, hidden_size=16, num_hidden_layers=4, num_attention_heads=2)
    with pytest.raises(ValueError, match="'bert' cannot be opened: its base model has no"):
        scan_layer_ranges(BertLMHeadModel(encoder), TOKENS, [(1, 2)], [2])
