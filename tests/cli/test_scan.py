import csv

import pytest
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM

from hf_loop.evaluation import LayerScan, scan_layer_ranges


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "games.txt"
    path.write_text("ball:1 1<->2 2<->3 ball:3\n" * 20)
    return path


def test_it_measures_every_range_and_draws_them(hf_loop, plain_folder, tokenizer, text_file, tmp_path):
    options = ("--loops", "2,3", "--update", "both", "--window", 16, "--max-tokens", 60, "--device", "cpu")
    code, out, err = hf_loop("scan", plain_folder, "--text", text_file, *options, "--output-dir", tmp_path / "out")
    assert code == 0, err
    scan = LayerScan.load(tmp_path / "out" / "scan.json")
    assert scan.label == "plain"
    input_ids = tokenizer(text_file.read_text(), return_tensors="pt")["input_ids"][:, :60]
    expected = scan_layer_ranges(
        AutoModelForCausalLM.from_pretrained(plain_folder),
        input_ids,
        [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)],
        [2, 3],
        updates=("replace", "damped"),
        window=16,
    )
    values = {cell.key: cell.perplexity for cell in expected.cells}
    assert {cell.key: cell.perplexity for cell in scan.cells} == pytest.approx(values, rel=1e-5)

    best = scan.best(1)[0]
    assert f"perplexity of plain: {scan.base_perplexity:.4f} on 56 tokens" in out
    assert "the best of 24 cells" in out
    assert f"{best.perplexity:.4f}" in out
    assert f"{100 * (scan.ratio(best) - 1):+.2f} %" in out
    rows = list(csv.DictReader((tmp_path / "out" / "scan.csv").read_text().splitlines()))
    assert (int(rows[0]["first"]), int(rows[0]["last"])) == (best.first, best.last)
    assert (tmp_path / "out" / "scan.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_adds_to_the_first_and_repeats_nothing(hf_loop, plain_folder, text_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("scan", plain_folder, "--text", text_file, "--max-tokens", 30)
    assert hf_loop(*arguments, "--max-length", 1)[0] == 0
    code, _, err = hf_loop(*arguments, "--layers", "0-1")
    assert code == 0, err
    # (0, 0) and (1, 1) were there
    assert "1 ranges to measure" in err
    scan = LayerScan.load("scans/plain/scan.json")
    assert [cell.key[:2] for cell in scan.cells] == [(0, 0), (1, 1), (2, 2), (0, 1)]
    code, out, err = hf_loop(*arguments, "--stride", 2, "--max-length", 2)
    assert code == 0, err
    assert "ranges to measure" not in err
    assert "the best of 4 cells" in out


def test_the_weights_are_loaded_as_asked(hf_loop, plain_folder, text_file, tmp_path):
    arguments = ("scan", plain_folder, "--text", text_file, "--max-tokens", 30, "--output-dir", tmp_path / "out")
    assert hf_loop(*arguments, "--dtype", "bfloat16", "--max-length", 1)[0] == 0
    assert LayerScan.load(tmp_path / "out" / "scan.json").settings["dtype"] == "bfloat16"
    code, _, err = hf_loop(*arguments, "--dtype", "float32", "--max-length", 1)
    assert code == 2
    assert "dtype bfloat16 there, float32 here" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loops", "0"], "'0' is not a loop count"),
        (["--loops", "2.5"], "'2.5' is not a loop count"),
        (["--loops", "1,2"], "one loop is the model itself"),
        (["--layers", "2-1"], "`--layers` must be FIRST-LAST"),
        (["--layers", "1-3"], "(1, 3) passes the end: the model has the layers 0 to 2"),
        (["--min-length", "4"], "min_length 4 leaves no range"),
        (["--stride", "0"], "--stride"),
        (["--update", "half"], "--update"),
        (["--dtype", "int4"], "--dtype"),
        (["--device", "abacus"], "--device: 'abacus' cannot be used"),
        (["--text", "missing.txt"], "there is no file missing.txt"),
        (["--text", "empty.txt"], "empty.txt holds no text"),
    ],
)
def test_errors_are_one_line_and_come_before_the_weights(
    hf_loop, plain_folder, text_file, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    monkeypatch.setattr("hf_loop.cli.scan.load_plain_model", None)
    code, _, err = hf_loop("scan", plain_folder, "--text", text_file, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "scans").exists()


def test_a_missing_text_is_a_usage_error(hf_loop, plain_folder):
    code, _, err = hf_loop("scan", plain_folder)
    assert (code, err.count("\n")) == (2, 1)
    assert "--text" in err


def test_looped_models_and_encoders_are_refused_before_the_weights(
    hf_loop, looped_folder, text_file, tokenizer, tmp_path, monkeypatch
):
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    BertForMaskedLM(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    monkeypatch.setattr("hf_loop.cli.scan.load_plain_model", None)
    for folder, message in (
        (looped_folder, "is a looped model already; sweep it instead"),
        (tmp_path / "encoder", "'bert' cannot be opened: its base model has no"),
    ):
        code, _, err = hf_loop("scan", folder, "--text", text_file)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err


def test_a_file_that_cannot_be_continued_is_found_before_the_weights(
    hf_loop, plain_folder, text_file, tmp_path, monkeypatch
):
    arguments = ("scan", plain_folder, "--text", text_file, "--max-tokens", 30, "--output-dir", tmp_path)
    assert hf_loop(*arguments, "--max-length", 1)[0] == 0
    monkeypatch.setattr("hf_loop.cli.scan.load_plain_model", None)
    code, _, err = hf_loop(*arguments, "--window", 8)
    assert (code, err.count("\n")) == (2, 1)
    assert "window 512 there, 8 here" in err
    (tmp_path / "scan.json").write_text("{")
    code, _, err = hf_loop(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert "scan.json is not valid JSON" in err
    assert (tmp_path / "scan.json").read_text() == "{"


def test_an_interruption_keeps_what_was_measured(hf_loop, plain_folder, text_file, tmp_path, monkeypatch):
    from hf_loop.evaluation.scan_passes import ScanPasses

    measure = ScanPasses.measure

    def interrupted(self, first, last, counts):
        if (first, last) == (0, 2):
            raise KeyboardInterrupt
        return measure(self, first, last, counts)

    monkeypatch.setattr(ScanPasses, "measure", interrupted)
    arguments = ("scan", plain_folder, "--text", text_file, "--max-tokens", 30, "--output-dir", tmp_path / "out")
    code, _, error = hf_loop(*arguments)
    assert code == 130
    assert error.endswith("hf-loop: interrupted\n")
    assert len(LayerScan.load(tmp_path / "out" / "scan.json").cells) == 2
