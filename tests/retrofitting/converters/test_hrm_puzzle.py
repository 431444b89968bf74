"""Converted HRM and TRM checkpoints against the papers' forward pass, over random weights of the published shapes."""

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM

from hf_loop import HierarchicalForPuzzle, convert
from hf_loop.models.hierarchical_presets import gated_width

from ...models.puzzle_reference import Weights, encode, segment


WIDTH, HEADS, VOCAB_SIZE, CELLS = 32, 4, 11, 16
CLOSE = {"atol": 2e-5, "rtol": 1e-5}
ARCH = {
    "halt_exploration_prob": 0.1,
    "halt_max_steps": 16,
    "hidden_size": WIDTH,
    "num_heads": HEADS,
    "expansion": 4,
    "puzzle_emb_ndim": WIDTH,
    "pos_encodings": "rope",
    "forward_dtype": "bfloat16",
    "loss": {"name": "losses@ACTLossHead", "loss_type": "stablemax_cross_entropy"},
}
HRM = ARCH | {
    "name": "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1", "H_cycles": 2, "L_cycles": 2, "H_layers": 4,
    "L_layers": 4,
}  # fmt: skip
TRM = ARCH | {
    "name": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1", "H_cycles": 3, "L_cycles": 6, "H_layers": 0,
    "L_layers": 2, "mlp_t": False, "puzzle_emb_len": 16, "no_ACT_continue": True,
}  # fmt: skip
CHECKPOINTS = {
    "hrm": HRM,
    "hrm, learned positions": HRM | {"pos_encodings": "learned"},
    "trm": TRM,
    # as many cycles as single precision follows: random mixers amplify its rounding
    "trm, mlp": TRM | {"mlp_t": True, "pos_encodings": "none", "H_cycles": 2, "L_cycles": 2},
    "trm, continue": TRM | {"no_ACT_continue": False, "puzzle_emb_len": 0},
    "trm, wide puzzle": TRM | {"puzzle_emb_ndim": 40, "puzzle_emb_len": 2},
}


# as the checkpoints for 9x9 Sudoku were published
PUBLISHED_SIZES = {"hidden_size": 512, "num_heads": 8, "puzzle_emb_ndim": 512}
PUBLISHED = {
    "hrm": HRM | PUBLISHED_SIZES,
    "trm": TRM | PUBLISHED_SIZES,
    "trm, mlp": TRM | PUBLISHED_SIZES | {"mlp_t": True, "pos_encodings": "none"},
}


def num_puzzle_tokens(arch):
    given = arch.get("puzzle_emb_len", 0)
    return given or -(arch["puzzle_emb_ndim"] // -arch["hidden_size"])


def make_tensors(arch, prefix="_orig_mod.model.inner.", cells=CELLS):
    """A state dict with the published names and shapes."""
    torch.manual_seed(0)
    width = arch["hidden_size"]
    positions = cells + num_puzzle_tokens(arch)

    def draw(*shape):
        return torch.randn(shape) / shape[-1] ** 0.5

    tensors = {
        "embed_tokens.embedding_weight": draw(VOCAB_SIZE, width),
        "lm_head.weight": draw(VOCAB_SIZE, width),
        "q_head.weight": draw(2, width),
        "q_head.bias": torch.randn(2),
        "puzzle_emb.weights": draw(3, arch["puzzle_emb_ndim"]),
        "H_init": torch.randn(width).bfloat16(),
        "L_init": torch.randn(width).bfloat16(),
    }
    if arch["pos_encodings"] == "learned":
        tensors["embed_pos.embedding_weight"] = draw(positions, width)
    for level in ("H_level", "L_level") if arch["H_layers"] else ("L_level",):
        for index in range(arch["L_layers"]):
            layer = f"{level}.layers.{index}"
            for name, size in (("mlp", width), ("mlp_t", positions)):
                if name == "mlp" or arch.get("mlp_t"):
                    inner = gated_width(size)
                    tensors[f"{layer}.{name}.gate_up_proj.weight"] = draw(2 * inner, size)
                    tensors[f"{layer}.{name}.down_proj.weight"] = draw(size, inner)
            if not arch.get("mlp_t"):
                tensors[f"{layer}.self_attn.qkv_proj.weight"] = draw(3 * width, width)
                tensors[f"{layer}.self_attn.o_proj.weight"] = draw(width, width)
    return {prefix + name: tensor for name, tensor in tensors.items()}


def write(folder, arch, tensors, file="checkpoint"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "all_config.yaml").write_text(yaml.safe_dump({"arch": arch, "lr": 1e-4, "global_batch_size": 768}))
    torch.save(tensors, folder / file)
    return folder


def reference(arch, tensors):
    """The published tensors as plain ones for the forward pass written out."""
    named = {name.partition("inner.")[2]: tensor.double() for name, tensor in tensors.items()}

    def layers(level):
        result = []
        for index in range(arch["L_layers"]):
            start = f"{level}.layers.{index}"
            layer = {"down": named[f"{start}.mlp.down_proj.weight"]}
            layer["gate"], layer["up"] = named[f"{start}.mlp.gate_up_proj.weight"].chunk(2)
            if arch.get("mlp_t"):
                layer["mixer_gate"], layer["mixer_up"] = named[f"{start}.mlp_t.gate_up_proj.weight"].chunk(2)
                layer["mixer_down"] = named[f"{start}.mlp_t.down_proj.weight"]
            else:
                layer["q"], layer["k"], layer["v"] = named[f"{start}.self_attn.qkv_proj.weight"].chunk(3)
                layer["o"] = named[f"{start}.self_attn.o_proj.weight"]
            result.append(layer)
        return result

    low = layers("L_level")
    return Weights(
        tokens=named["embed_tokens.embedding_weight"],
        head=named["lm_head.weight"],
        low_layers=low,
        high_layers=layers("H_level") if arch["H_layers"] else low,
        starts=[named["H_init"], named["L_init"]],
        schedule={
            "num_loops": arch["H_cycles"],
            "low_cycles": arch["L_cycles"],
            "num_heads": arch["num_heads"],
            "rotary": arch["pos_encodings"] == "rope",
            "puzzle_tokens": num_puzzle_tokens(arch),
        },
        halt_head=(named["q_head.weight"], named["q_head.bias"]),
        puzzles=named["puzzle_emb.weights"],
        positions=named.get("embed_pos.embedding_weight"),
    )


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_three_segments_equal_the_papers_forward(name, tmp_path):
    check_three_segments(CHECKPOINTS[name], CELLS, 4, tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_three_segments_at_the_published_sizes(name, tmp_path):
    check_three_segments(PUBLISHED[name], 81, 1, tmp_path)


@torch.no_grad()
def check_three_segments(arch, cells, num_rows, tmp_path):
    tensors = make_tensors(arch, cells=cells)
    model = convert(write(tmp_path / "published", arch, tensors))
    assert isinstance(model, HierarchicalForPuzzle) and not model.training
    # random layers, run 250 times, amplify what single precision rounds away
    model = model.double()
    weights, states, carry = reference(arch, tensors), None, None
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1, VOCAB_SIZE, (num_rows, cells), generator=generator)
    puzzle_ids = torch.tensor([0, 2, 1, 1])[:num_rows]
    encoded = encode(weights, input_ids, puzzle_ids)
    is_binary = arch.get("no_ACT_continue", False)
    for _ in range(3):
        logits, halt_logits, states = segment(weights, encoded, states)
        outputs = model(input_ids, puzzle_ids=puzzle_ids, carry=carry)
        carry = outputs.carry
        torch.testing.assert_close(outputs.logits, logits, **CLOSE)
        halt_logits = halt_logits[:, :1] if is_binary else halt_logits
        torch.testing.assert_close(outputs.halt_logits, halt_logits.float(), **CLOSE)
    model.save_pretrained(tmp_path / "ours")
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(
        loaded(input_ids, puzzle_ids=puzzle_ids, num_segments=3).logits, outputs.logits, **CLOSE
    )


def test_the_settings_arrive(tmp_path):
    softmax = {"name": "losses@ACTLossHead", "loss_type": "softmax_cross_entropy"}
    arch = TRM | {"halt_max_steps": 8, "loss": softmax, "rms_norm_eps": 1e-6, "rope_theta": 500}
    config = convert(write(tmp_path / "trm", arch, make_tensors(arch))).config
    assert (config.num_loops, config.low_cycles, config.max_segments) == (3, 6, 8)
    assert (config.halting, config.gradient, config.cell_loss) == ("binary", "last_cycle", "softmax")
    assert (config.shared_stack, config.num_puzzles, config.num_puzzle_tokens) == (True, 3, 16)
    assert (config.backbone_config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (1e-6, 500)
    config = convert(write(tmp_path / "hrm", HRM, make_tensors(HRM)), num_loops=5).config
    assert (config.num_loops, config.low_cycles, config.halting, config.gradient) == (5, 2, "q_learning", "one_step")
    assert (config.shared_stack, config.backbone_config.num_hidden_layers) == (False, 8)


@pytest.mark.parametrize("prefix", ["inner.", "model.inner.", "_orig_mod.inner.", "model._orig_mod.inner."])
@torch.no_grad()
def test_names_may_be_wrapped(prefix, tmp_path):
    input_ids = torch.ones(1, CELLS, dtype=torch.long)
    expected = convert(write(tmp_path / "one", TRM, make_tensors(TRM)))(input_ids).logits
    other = convert(write(tmp_path / "other", TRM, make_tensors(TRM, prefix)))(input_ids).logits
    torch.testing.assert_close(other, expected, **CLOSE)


def test_of_several_steps_the_last_is_taken(tmp_path):
    for step in (900, 10_000):
        tensors = make_tensors(TRM)
        tensors["_orig_mod.model.inner.q_head.bias"] = torch.full((2,), float(step))
        write(tmp_path, TRM, tensors, f"step_{step}")
    (tmp_path / "step_20000_all_preds.0").write_bytes(b"no weights")
    assert convert(tmp_path).halt_head.bias.item() == 10_000


@pytest.mark.parametrize("name", ["trm_sudoku.pth", "weights", "ema.bin", "best.safetensors"])
def test_the_only_file_of_weights_may_have_any_name(tmp_path, name):
    tensors = make_tensors(TRM)
    write(tmp_path, TRM, {}, "checkpoint")
    (tmp_path / "checkpoint").unlink()
    if name.endswith("safetensors"):
        save_file(tensors, tmp_path / name)
    else:
        torch.save(tensors, tmp_path / name)
    for other in ("trm.py", "losses.py", "README.md", "step_5_all_preds.0", ".gitattributes", "train.log"):
        (tmp_path / other).touch()
    bias = convert(tmp_path).halt_head.bias
    assert torch.equal(bias, tensors["_orig_mod.model.inner.q_head.bias"][:1])
    torch.save(tensors, tmp_path / "another")
    with pytest.raises(ValueError, match=f"must hold one file of weights beside all_config.yaml, got another, {name}"):
        convert(tmp_path)


@pytest.mark.parametrize("number", ["1e-05", "1E-5", "0.00001", "1.0e-05", "+1e-5"])
def test_numbers_are_numbers_as_the_published_code_reads_them(tmp_path, number):
    write(tmp_path, TRM, make_tensors(TRM))
    file = tmp_path / "all_config.yaml"
    text = file.read_text().replace("arch:", f"arch:\n  rms_norm_eps: {number}\n  rope_theta: 1e4", 1)
    file.write_text(text + "note: ${not.here}\n")
    config = convert(tmp_path).config
    assert config.backbone_config.rms_norm_eps == 1e-5
    assert config.backbone_config.rope_parameters["rope_theta"] == 1e4


@pytest.mark.parametrize("value", ["many", None, [2], {"a": 1}, -1, 0, 2.5, True, 10**9])
@pytest.mark.parametrize(
    "name", ["L_layers", "H_cycles", "num_heads", "hidden_size", "puzzle_emb_len", "halt_max_steps"]
)
def test_settings_of_another_type_are_one_line_that_names_the_folder(tmp_path, name, value):
    folder = write(tmp_path, TRM | {name: value}, make_tensors(TRM))
    try:
        convert(folder)
    except ValueError as error:
        assert str(folder) in str(error) or name in str(error) or "`" in str(error)


def test_weights_are_read_without_running_code(tmp_path):
    class Code:
        def __reduce__(self):
            return print, ("run",)

    with pytest.raises(ValueError, match="it names print and may be malicious; nothing of it was run") as error:
        convert(write(tmp_path, TRM, make_tensors(TRM) | {"extra": Code()}))
    # torch's own message says how to switch safety off
    assert "weights_only" not in str(error.value)


def test_what_cannot_be_converted_is_named(tmp_path):
    tensors = make_tensors(HRM)
    for arch, message in (
        (HRM | {"H_layers": 2}, "`H_layers` of the checkpoint is 2; it must equal `L_layers` 4"),
        (HRM | {"pos_encodings": "alibi"}, "`pos_encodings` of the checkpoint is 'alibi'; only 'rope' or 'learned'"),
        (HRM | {"loss": {"loss_type": "focal"}}, "`loss_type` of the checkpoint is 'focal'"),
        ({name: value for name, value in HRM.items() if name != "H_cycles"}, "lacks 'H_cycles'"),
        (HRM | {"name": "other@Transformer"}, "which no converter knows"),
        (TRM | {"puzzle_emb_ndim": 0}, "`puzzle_emb_len` of the checkpoint is 16, for no embedding"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(write(tmp_path / "refused", arch, tensors))
    gone = "_orig_mod.model.inner.H_level.layers.3.mlp.down_proj.weight"
    with pytest.raises(ValueError, match=r"lacks 1 tensors: H_level\.layers\.3\.mlp\.down_proj\.weight"):
        convert(write(tmp_path / "less", HRM, {name: value for name, value in tensors.items() if name != gone}))
    with pytest.raises(ValueError, match="1 tensors that are not known: extra"):
        convert(write(tmp_path / "more", HRM, tensors | {"model.inner.extra": torch.zeros(2)}))
    (tmp_path / "less" / "checkpoint").unlink()
    with pytest.raises(OSError, match="holds no weights"):
        convert(tmp_path / "less")
    (tmp_path / "less" / "all_config.yaml").write_text("arch: [")
    with pytest.raises(ValueError, match="is not YAML"):
        convert(tmp_path / "less")
