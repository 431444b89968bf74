"""Compiled in parts, a looped model computes what it computes uncompiled, on the same graphs for all loop counts."""

import copy
import pickle

import pytest
import torch
from transformers import CompileConfig

from hf_loop import LoopedConfig, LoopedForCausalLM
from hf_loop.models.repeated_graph import RepeatedGraph

from .tiny_backbones import tiny_backbone


LOOPS = (2, 3, 5, 8, 12)
INPUT_IDS = torch.arange(3, 17).reshape(2, 7)
VARIANTS = {
    "damped": {"loop_update": "damped", "injection": "add", "loop_norm": "own", "state_init": "zeros"},
    "lora": {"loop_lora_rank": 2, "loop_lora_num_loops": 3, "loop_lora_vectors": True, "injection": "add"},
    "diagonal": {"injection": "diagonal", "state_init": "learned", "state_projection": True, "coda_norm": True},
}
GREEDY = {"max_new_tokens": 5, "do_sample": False, "cache_implementation": "static"}


class Graphs:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs, **kwargs):
        self.count += 1
        return graph.forward

    def __deepcopy__(self, memo):
        return self


def make_model(**fields) -> LoopedForCausalLM:
    torch.manual_seed(0)
    fields = {"num_prelude_layers": 1, "num_coda_layers": 1, **fields}
    model = LoopedForCausalLM(LoopedConfig(backbone_config=tiny_backbone("llama", num_hidden_layers=3), **fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "loop_lora" in name:
                parameter.normal_(std=0.3)
    return model.eval()


def compiled_copy(model, **options):
    compiled, graphs = copy.deepcopy(model), Graphs()
    compiled.compile(backend=graphs, **options)
    return compiled, graphs


def compile_config(graphs: Graphs) -> CompileConfig:
    config = CompileConfig(backend=graphs, mode=None, fullgraph=True)
    config._compile_all_devices = True
    return config


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_number_of_loops_runs_on_the_same_graphs(variant):
    model = make_model(**VARIANTS[variant])
    compiled, graphs = compiled_copy(model, fullgraph=True)
    counts = []
    with torch.no_grad():
        for num_loops in LOOPS:
            logits = compiled(INPUT_IDS, num_loops=num_loops, use_cache=False).logits
            torch.testing.assert_close(logits, model(INPUT_IDS, num_loops=num_loops, use_cache=False).logits)
            counts.append(graphs.count)
    assert counts == [3] * len(LOOPS)


def test_compiling_warns_of_nothing(recwarn):
    # torch gives each of its warnings once
    torch._dynamo.utils.warn_once_cache.clear()
    make_model().generate(INPUT_IDS, compile_config=compile_config(Graphs()), **GREEDY)
    assert [str(warning.message) for warning in recwarn] == []


def gradients(model, **kwargs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(INPUT_IDS, labels=INPUT_IDS, use_cache=False, **kwargs).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(("variant", "is_checkpointed"), [("damped", True), ("lora", False)])
def test_training_runs_on_the_same_graphs(variant, is_checkpointed):
    model = make_model(**VARIANTS[variant]).train()
    if is_checkpointed:
        model.activation_checkpointing_enable({"use_reentrant": False})
    compiled, graphs = compiled_copy(model, fullgraph=True)
    counts = []
    for num_loops in LOOPS:
        for num_backprop_loops in (None, 1):
            depth = {"num_loops": num_loops, "num_backprop_loops": num_backprop_loops}
            torch.testing.assert_close(gradients(compiled, **depth), gradients(model, **depth))
        counts.append(graphs.count)
    # the core with gradient and without, the prelude and the coda
    assert counts == [4] * len(LOOPS)


def test_decoding_with_a_static_cache_runs_on_the_same_graphs():
    model, graphs = make_model(loop_lora_rank=2, loop_lora_num_loops=3), Graphs()
    counts = []
    for num_loops in LOOPS:
        options = {**GREEDY, "num_loops": num_loops, "output_logits": True, "return_dict_in_generate": True}
        expected = model.generate(INPUT_IDS, disable_compile=True, **options)
        assert graphs.count == (4 if counts else 0)
        outputs = model.generate(INPUT_IDS, compile_config=compile_config(graphs), **options)
        torch.testing.assert_close(outputs.logits, expected.logits)
        counts.append(graphs.count)
    # the prelude, the core, the coda and the head
    assert counts == [4] * len(LOOPS)
    # another length of the cache is another shape: the whole model would be compiled again, too
    model.with_num_loops(2).generate(INPUT_IDS, compile_config=compile_config(graphs), **GREEDY)
    assert graphs.count == 4


def test_a_graph_is_looked_for_once_in_every_pass(monkeypatch):
    model, graphs, found = make_model(injection="add"), Graphs(), []
    run = RepeatedGraph.run
    monkeypatch.setattr(RepeatedGraph, "run", lambda self, own: found.append(len(own)) or run(self, own))
    options = {**GREEDY, "num_loops": 4, "output_logits": True, "return_dict_in_generate": True}
    config = compile_config(graphs)
    outputs = model.generate(INPUT_IDS, compile_config=config, **options)
    # three of four loops of the four tokens after the first; the state, and what the slot of the core's layer has
    assert found == [4] * 12
    # a hook may run any Python, which a graph does not
    hooked = make_model(injection="add")
    hooked.model.core_layers()[0].mlp.register_forward_hook(lambda module, inputs, output: 1.0 * output)
    logits = hooked.generate(INPUT_IDS, compile_config=config, **options).logits
    torch.testing.assert_close(logits, outputs.logits)
    assert len(found) == 12


def test_what_graphs_do_not_take_runs_uncompiled():
    model = make_model()
    compiled, graphs = compiled_copy(model)
    with torch.no_grad():
        expected = model(INPUT_IDS, output_hidden_states=True, use_cache=False)
        outputs = compiled(INPUT_IDS, output_hidden_states=True, use_cache=False)
        torch.testing.assert_close(outputs.hidden_states, expected.hidden_states)
        # exits have row counts of their own, and a dynamic cache grows
        outputs = compiled(INPUT_IDS, exit_criterion="entropy", exit_threshold=9.0, use_cache=False)
        assert outputs.exit_loops.unique().tolist() == [1]
        generated = compiled.generate(INPUT_IDS, max_new_tokens=4, do_sample=False)
        assert torch.equal(generated, model.generate(INPUT_IDS, max_new_tokens=4, do_sample=False))
    assert graphs.count == 0


def test_a_whole_model_that_is_compiled_has_one_graph():
    model = make_model()
    compiled, parts = compiled_copy(model)
    graphs = Graphs()
    whole = torch.compile(compiled, backend=graphs, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(whole(INPUT_IDS, use_cache=False).logits, model(INPUT_IDS, use_cache=False).logits)
    assert (graphs.count, parts.count) == (1, 0)


def test_a_compiled_model_is_copied_and_follows_its_weights():
    model = make_model()
    compiled, graphs = compiled_copy(model)
    with torch.no_grad():
        compiled(INPUT_IDS, use_cache=False)
        for parameter in (*compiled.parameters(), *model.parameters()):
            parameter.mul_(0.5)
        logits = compiled(INPUT_IDS, use_cache=False).logits
        torch.testing.assert_close(logits, model(INPUT_IDS, use_cache=False).logits)
        assert graphs.count == 3
        restored = pickle.loads(pickle.dumps(make_compiled_pickle(compiled)))
        torch.testing.assert_close(restored(INPUT_IDS, use_cache=False).logits, logits)


def make_compiled_pickle(model):
    # a test's backend cannot be loaded from a file
    model = copy.deepcopy(model)
    model.compile(backend="eager")
    return model
