"""A benchmark of decoding: what it measures, what it refuses, and how it goes on."""

import json
import math

import pytest
import torch

from hf_loop.evaluation import bench as bench_module
from hf_loop.evaluation import bench_runs
from hf_loop.evaluation.bench import run_bench, spread_prompts
from hf_loop.evaluation.bench_plots import plot_bench
from hf_loop.evaluation.bench_results import Bench, spread
from hf_loop.evaluation.bench_runs import cache_bytes, make_run, measure_memory, plain_llama
from hf_loop.evaluation.bench_settings import (
    THRESHOLDS,
    BenchSetting,
    make_settings,
    parse_batches,
    parse_drafts,
    parse_exits,
    parse_policies,
)
from hf_loop.evaluation.bench_tables import HEADINGS, alt_text, refusals, table_rows, to_markdown
from hf_loop.evaluation.memory import kv_bytes_per_token
from hf_loop.models.compile_seams import compile_on_any_device
from hf_loop.models.transformers_seams import cache_of

from ..models.looped_variants import VARIANTS, tiny_looped
from ..models.model_tester import random_ids
from .bench_example import example


NUM_LOOPS = 3
OPTIONS = {"new_tokens": 3, "rounds": 2, "batch_sizes": [1, 2]}


@pytest.fixture(scope="module")
def model():
    return tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["prelude and coda"])


def some_settings():
    rules = [("kl", 0.01), ("gate", 0.5)]
    return make_settings(NUM_LOOPS, [1], rules, ["last_loop"], [(1, 2)], [("kl", 0.01)])


def test_the_default_settings():
    settings = make_settings(8, None, [("kl", 0.01)], ["own", "cyclic:2"], [(1, 4)], [("kl", 0.1)], True, ["other"])
    assert [setting.name for setting in settings] == [
        *("8 loops", "1 loop", "2 loops", "4 loops", "kl:0.01", "oracle", "oracle, loss", "cyclic:2", "draft 1:4"),
        *("batched kl:0.1", "compiled", "plain Llama", "other"),
    ]
    assert [setting.name for setting in make_settings(3, [3, 2])][:2] == ["3 loops", "2 loops"]


def test_lists_of_the_command_line():
    assert parse_exits("kl:0.5, entropy") == [("kl", 0.5), *(("entropy", value) for value in THRESHOLDS["entropy"])]
    assert parse_exits("") == []
    assert parse_policies("own,cyclic:2,own") == ["own", "cyclic:2"]
    assert parse_drafts("1:4,2:3") == [(1, 4), (2, 3)]
    assert parse_batches("16, 1") == [16, 1]


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_exits, "kll", "'kll' is no exit rule; there are state_change, kl"),
        (parse_exits, "kl:x", "'kl:x' is not RULE:THRESHOLD"),
        (parse_exits, "gate:2", "`exit_threshold` must be from 0 to 1"),
        (parse_policies, "cyclic", "`cache_policy` must be"),
        (parse_drafts, "1", "'1' is not LOOPS:TOKENS"),
        (parse_drafts, "1:0", "'1:0' is not LOOPS:TOKENS"),
        (parse_batches, "1,0", "'0' is not a batch size"),
    ],
)
def test_bad_lists_are_refused(parse, text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_every_setting_is_measured_or_says_why_not(model, tmp_path):
    path = tmp_path / "folder" / "bench.json"
    bench = run_bench(model, random_ids(1, 40), some_settings(), path=path, **OPTIONS)
    rows = {row.name: row for row in bench.rows}
    assert list(rows) == [
        *("3 loops", "1 loop", "kl:0.01", "gate:0.5", "oracle", "oracle, loss", "last_loop", "draft 1:2"),
        *("batched kl:0.01", "plain Llama"),
    ]
    assert rows["draft 1:2"].quality == rows["3 loops"].quality
    assert rows["batched kl:0.01"].quality == rows["kl:0.01"].quality
    gate, plain = rows.pop("gate:0.5"), rows.pop("plain Llama")
    assert set(gate.refused) == {"text", "1", "2"} and "exit_gate=True" in gate.refused["text"]
    assert gate.quality is None and not gate.memory
    assert plain.quality is None and not plain.refused
    assert [bench.num_runs("gate:0.5", batch) for batch in (1, 2)] == [0, 0]
    for row in (*rows.values(), plain):
        assert all(bench.num_runs(row.name, batch) == 2 for batch in (1, 2)), row.name
        assert bench.ratio(row.name, 1).low > 0
    for row in rows.values():
        assert math.isfinite(row.quality.perplexity) and not row.refused
    assert bench.ratio("3 loops", 2) == (1, 1, 1)
    full = kv_bytes_per_token(model.config, dtype=torch.float32)
    assert rows["3 loops"].memory["2"].kv_bytes_per_token == full
    assert rows["oracle"].memory["1"].kv_bytes_per_token == full
    assert rows["last_loop"].memory["1"].kv_bytes_per_token == kv_bytes_per_token(model.config, 1, torch.float32)
    assert Bench.load(path) == bench


def test_the_models_own_cache_policy_is_in_no_setting():
    model = tiny_looped(num_loops=NUM_LOOPS)
    model.generation_config.cache_policy = "last_loop"
    settings = make_settings(NUM_LOOPS, [], drafts=[(1, 2)])
    rows = {row.name: row for row in run_bench(model, random_ids(1, 40), settings, **OPTIONS).rows}
    full = kv_bytes_per_token(model.config, dtype=torch.float32)
    assert rows["3 loops"].memory["2"].kv_bytes_per_token == full
    assert not rows["draft 1:2"].refused
    assert model.generation_config.cache_policy == "last_loop"


def test_it_goes_on_where_it_was_interrupted(model, tmp_path, monkeypatch):
    path, ids = tmp_path / "bench.json", random_ids(1, 40)
    settings = make_settings(NUM_LOOPS, [1, 2])
    measure, calls = bench_module.timed, []

    def interrupted(run, device):
        calls.append(run)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return measure(run, device)

    monkeypatch.setattr(bench_module, "timed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_bench(model, ids, settings, path=path, **OPTIONS)
    kept = Bench.load(path)
    assert [len(times) for times in kept.rounds["1"]] == [5]
    monkeypatch.setattr(bench_module, "score", None)
    bench = run_bench(model, ids, settings, path=path, **OPTIONS)
    assert [row.quality for row in bench.rows] == [row.quality for row in kept.rows]
    # the round that was cut short is kept, and what it lacks has rounds of its own with the first setting
    assert bench.rounds["1"][0] == kept.rounds["1"][0]
    assert all(bench.num_runs(setting.name, 1) >= 2 for setting in settings)
    assert all("3 loops" in times for times in bench.rounds["1"])
    monkeypatch.setattr(bench_module, "timed", None)
    assert run_bench(model, ids, settings, path=path, **OPTIONS) == bench


def test_another_model_or_text_is_no_continuation(model, tmp_path):
    path, settings = tmp_path / "bench.json", make_settings(NUM_LOOPS, [])[:1]
    run_bench(model, random_ids(1, 50), settings, path=path, **OPTIONS)
    for other, ids, options in (
        (tiny_looped(seed=1), random_ids(1, 50), {}),
        (model, random_ids(1, 51), {}),
        (model, random_ids(1, 50), {"new_tokens": 4}),
    ):
        with pytest.raises(ValueError, match="was measured with other settings"):
            run_bench(other, ids, settings, path=path, **{**OPTIONS, **options})


def test_a_first_setting_that_is_refused_is_an_error(model):
    refused = BenchSetting("gate", "exit", {"num_loops": NUM_LOOPS, "exit_criterion": "gate"})
    with pytest.raises(ValueError, match="exit_gate"):
        run_bench(model, random_ids(1, 50), [refused], **OPTIONS)


def test_other_models_are_measured_beside(model):
    llama = plain_llama(model.config, 2, seed=0)
    settings = [*make_settings(NUM_LOOPS, [], others=["small"])[:1], BenchSetting("small", "other")]
    bench = run_bench(model, random_ids(1, 50), settings, others={"small": llama}, **OPTIONS)
    assert bench.rows[1].quality.loops is None and bench.rows[1].quality.perplexity > 1
    assert bench.num_runs("small", 2) == 2


def test_the_plain_llama_has_the_decoders_sizes(model):
    llama = plain_llama(model.config, model.config.num_hidden_layers, seed=0)
    assert len(llama.model.layers) == len(model.config.calls(num_loops=NUM_LOOPS)) == 8
    layers = llama.model.layers[0], model.model.backbone.layers[0]
    assert [p.shape for p in layers[0].parameters()] == [p.shape for p in layers[1].parameters()]
    state = torch.random.get_rng_state()
    again = plain_llama(model.config, 8, seed=0)
    assert torch.equal(llama.lm_head.weight, again.lm_head.weight)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_runs_write_the_same_number_of_tokens(model):
    prompts = random_ids(2, 5)
    for setting in some_settings():
        if setting.kind in ("plain", "batching") or setting.name.startswith("gate"):
            continue
        assert make_run(setting, model, prompts, 4)().sequences.shape == (2, 9)


def test_the_compiled_run_writes_the_same_text(model, monkeypatch):
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    def config():
        made = compile_on_any_device()
        made.backend, made.mode = backend, None
        return made

    monkeypatch.setattr(bench_runs, "compile_on_any_device", config)
    settings = make_settings(NUM_LOOPS, [], is_compiled=True)
    first, compiled = settings[0], next(setting for setting in settings if setting.kind == "compiled")
    texts = [make_run(setting, model, random_ids(2, 5), 4)().sequences for setting in (first, compiled)]
    assert torch.equal(*texts) and calls


def test_a_model_without_depth_batching_says_so(model):
    (setting,) = (one for one in some_settings() if one.kind == "batching")
    with pytest.raises(ValueError, match="a llama model has no continuous depth batching"):
        make_run(setting, plain_llama(model.config, 1, seed=0), random_ids(2, 5), 4)


def test_the_oracle_writes_what_all_loops_write(model):
    prompts = random_ids(2, 5)
    full, oracle = ([make_run(s, model, prompts, 4)() for s in some_settings() if s.name == name][0]
                    for name in ("3 loops", "oracle"))  # fmt: skip
    assert torch.equal(full.sequences[:, :6], oracle.sequences[:, :6])
    assert cache_bytes(cache_of(full)) == cache_bytes(cache_of(oracle))


def test_peak_memory_is_what_a_run_adds():
    held = []

    class Outputs:
        cache = past_key_values = None

    def run():
        held.append(torch.ones(1 << 24))
        held.clear()
        return Outputs()

    memory = measure_memory(run, torch.device("cpu"), 1)
    assert memory.kv_bytes_per_token is None
    # 64 MiB, on systems that tell
    assert memory.peak_bytes is None or 0.9 < memory.peak_bytes / (1 << 26) < 1.5


def test_prompts_are_spread_over_the_text():
    text = torch.arange(100)[None]
    prompts = spread_prompts(text, 3)
    assert prompts[:, 0].tolist() == [0, 42, 84] and prompts.shape == (3, 16)
    assert spread_prompts(text, 1)[0, 0] == 0
    assert spread_prompts(text[:, :5], 4).tolist() == [[0, 1, 2, 3, 4]] * 4


def test_quartiles():
    assert spread([]) is None
    assert spread([2.0]) == (2, 2, 2)
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (2, 3, 4)


def test_ratios_are_taken_within_a_round():
    bench = example()
    assert bench.ratio("1 loop", 1) == pytest.approx((0.525, 0.55, 0.575))
    assert bench.ratio("1 loop", 1, of_processor=True) == pytest.approx((0.625, 0.75, 0.875))
    assert bench.speed("2 loops", 1).median == pytest.approx(75)
    assert bench.ratio("gate:0.5", 1) is None and bench.speed("1 loop", 16) is None


def test_tables_and_page():
    bench = example()
    cells = table_rows(bench, 1)
    assert cells[0] == [
        *("2 loops", "2.00", "10", "50.00 %", "75.0", "1.000 ±0.000", "1.000 ±0.000"),
        *("2.0 KiB", "3.0 MiB"),
    ]
    assert cells[4] == ["gate:0.5", "", "refused", "", "refused", "", "", "", ""]
    assert refusals(bench, 1) == ["gate:0.5 is refused: it has no gate"]
    page = to_markdown(bench, "bench.png")
    assert f"![{alt_text(bench)}](bench.png)" in page and "- gate:0.5 is refused: it has no gate" in page
    assert page.count("\n| ") == len(bench.rows) + 2 and f"| {HEADINGS[0]} |" in page
    assert "at batch 1: 1 loop 0.55, kl:0.1 0.60, oracle 0.60" in alt_text(bench)


def test_a_file_keeps_what_is_not_finite(tmp_path):
    bench = example()
    bench.save(tmp_path / "bench.json")
    assert Bench.load(tmp_path / "bench.json") == bench
    json.loads((tmp_path / "bench.json").read_text(), parse_constant=pytest.fail)
    (tmp_path / "bench.json").write_text('{"rows": [3]}')
    with pytest.raises(ValueError, match="does not hold a benchmark"):
        Bench.load(tmp_path / "bench.json")


def test_the_figure(tmp_path):
    plot_bench(example(), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_bench(Bench("tiny", 2, {}), tmp_path / "none.png")
