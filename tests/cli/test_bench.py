import pytest

from hf_loop.evaluation.bench_quality import score
from hf_loop.evaluation.bench_results import Bench
from hf_loop.models import LoopedForCausalLM


QUICK = ("--max-tokens", 40, "--new-tokens", 2, "--rounds", 1, "--batch", 1)
FEW = ("--exits", "kl:0.01,gate:0.5", "--policies", "own,last_loop", "--draft", "1:2", "--depth-batching", "kl:0.01")


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "games.txt"
    path.write_text("ball:1 1<->2 2<->3 ball:3\n" * 20)
    return path


def test_it_measures_and_draws(hf_loop, looped_folder, plain_folder, tokenizer, text_file, tmp_path):
    arguments = ("bench", looped_folder, "--text", text_file, *QUICK, *FEW, "--output-dir", tmp_path / "out")
    code, out, err = hf_loop(*arguments, "--compare", plain_folder)
    assert code == 0, err
    bench = Bench.load(tmp_path / "out" / "bench.json")
    names = [
        *("2 loops", "1 loop", "kl:0.01", "gate:0.5", "oracle", "oracle, loss", "last_loop", "draft 1:2"),
        *("batched kl:0.01", "plain Llama", "plain"),
    ]
    assert [row.name for row in bench.rows] == names
    assert all(bench.num_runs(name, 1) == (name != "gate:0.5") for name in names)
    input_ids = tokenizer(text_file.read_text(), return_tensors="pt")["input_ids"][:, :40]
    expected = score(LoopedForCausalLM.from_pretrained(looped_folder), [input_ids], {"num_loops": 1})
    assert bench.rows[1].quality.perplexity == pytest.approx(expected.perplexity, rel=1e-5)
    assert f"{expected.perplexity:.5g}" in (tmp_path / "out" / "bench.md").read_text()
    assert "decoding with looped, batch 1:" in out
    assert "gate:0.5 is refused: `exit_criterion='gate'` needs a model with `exit_gate=True`" in " ".join(out.split())
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_adds_to_the_first(hf_loop, looped_folder, text_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    none = ("--policies", "own", "--draft", "", "--depth-batching", "")
    arguments = ("bench", "looped", "--text", text_file, *QUICK, *none, "--quiet")
    assert hf_loop(*arguments, "--exits", "")[0] == 0
    first = Bench.load("benches/looped/bench.json")
    code, _, err = hf_loop(*arguments, "--exits", "entropy:1")
    assert (code, err) == (0, "")
    bench = Bench.load("benches/looped/bench.json")
    assert [row.name for row in bench.rows] == [*(row.name for row in first.rows), "entropy:1"]
    assert bench.rounds["1"][0] == first.rounds["1"][0]
    assert set(bench.rounds["1"][1]) == {"2 loops", "entropy:1"}
    code, _, err = hf_loop(*arguments, "--new-tokens", 3)
    assert (code, err.count("\n")) == (2, 1) and "new_tokens 2 there, 3 here" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "missing.txt"], "there is no file missing.txt"),
        (["--exits", "kll"], "'kll' is no exit rule"),
        (["--exits", "gate:7"], "`exit_threshold` must be from 0 to 1"),
        (["--policies", "all"], "`cache_policy` must be"),
        (["--draft", "1"], "'1' is not LOOPS:TOKENS"),
        (["--depth-batching", "kll:1"], "--depth-batching: 'kll' is no exit rule"),
        (["--loops", "0"], "'0' is not a loop count"),
        (["--batch", "x"], "'x' is not a batch size"),
        (["--rounds", "0"], "--rounds"),
        (["--compare", "missing"], "there is no folder missing"),
    ],
)
def test_errors_are_one_line_and_come_before_the_weights(
    hf_loop, looped_folder, text_file, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_loop.cli.bench.load_model", None)
    code, _, err = hf_loop("bench", looped_folder, "--text", text_file, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "benches").exists()


def test_another_vocabulary_cannot_be_compared(hf_loop, looped_folder, plain_folder, text_file):
    tokens = plain_folder / "tokenizer.json"
    tokens.write_text(tokens.read_text().replace('"ball', '"wall'))
    code, _, err = hf_loop("bench", looped_folder, "--text", text_file, "--compare", plain_folder)
    assert (code, err.count("\n")) == (2, 1)
    assert "plain has another vocabulary" in err


def test_models_without_loops_are_refused_before_the_weights(hf_loop, plain_folder, text_file, monkeypatch):
    monkeypatch.setattr("hf_loop.cli.bench.load_model", None)
    code, _, err = hf_loop("bench", plain_folder, "--text", text_file)
    assert (code, err.count("\n")) == (2, 1)
    assert "is a llama model, which does not run in loops" in err
