"""The parts of vLLM and SGLang that meet a model's own code, to run it as they do without them.

The rules are those of their public source, in other words: of vLLM, `vllm/model_executor/models/transformers/`
(`base.py` at f5d9d7b, `fusers/attention.py` at 0848e67, `causal.py` at 0564ab2); of SGLang,
`python/sglang/srt/models/transformers.py` at 0465eeb. An engine here knows of a model what the engine would know, and
no more: its configuration, the modules that it finds, and what they hand to the attention function.
"""

import ast
import inspect
import textwrap
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AutoModel


@contextmanager
def parameters_on_meta() -> Generator[None]:
    """Put every parameter on the meta device when a module gets it, and leave buffers: models larger than the host."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: Any) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    nn.Module.register_parameter = register_on_meta  # ty: ignore[invalid-assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register


class EngineAttention(nn.Module):
    """One entry of the paged cache, with the attention that reads it. Tokens of several texts come packed in a row."""

    def __init__(self, engine: Any, scale: float, window: int | None, softcap: float | None):
        super().__init__()
        config = engine.config
        self.batch = engine.batch
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = getattr(config, "num_key_value_heads", None) or self.num_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // self.num_heads
        self.scale, self.window, self.softcap = scale, window, softcap
        self.texts: dict[int, list[torch.Tensor]] = {}
        self.num_calls = 0

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend with queries `[T, H * D]`, keys and values `[T, K * D]` of the texts in the batch."""
        self.num_calls += 1
        counts = list(self.batch.values())
        pieces = zip(*(states.split(counts) for states in (query, key, value)), strict=True)
        return torch.cat([self.attend(text, *piece) for text, piece in zip(self.batch, pieces, strict=True)])

    def attend(self, text: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        past = self.texts.get(text)
        if past is not None:
            key, value = torch.cat([past[0], key]), torch.cat([past[1], value])
        self.texts[text] = [key, value]
        num_new, num_all, groups = len(query), len(key), self.num_heads // self.num_kv_heads
        query = query.view(num_new, self.num_heads, self.head_size)
        key, value = (
            states.view(num_all, self.num_kv_heads, self.head_size).repeat_interleave(groups, 1)
            for states in (key, value)
        )
        scores = torch.einsum("qhd,khd->hqk", query, key) * self.scale
        if self.softcap:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        distance = torch.arange(num_all - num_new, num_all)[:, None] - torch.arange(num_all)
        is_seen = (distance >= 0) & (distance < (self.window or num_all))
        weights = scores.masked_fill(~is_seen, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, value).reshape(num_new, -1)


def packed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> list[torch.Tensor]:
    """Reshape what a layer hands to the attention function, `[1, H, T, D]`, as the engines do: `[T, H * D]`."""
    return [states.transpose(1, 2).reshape(query.shape[-2], -1) for states in (query, key, value)]


class Engine:
    """What both engines do around the model.

    Args:
        config (`PreTrainedConfig`): the model's configuration.
        state_dict (`dict`): the weights of its causal language model.
        trust_remote_code (`bool`): whether the classes may come with the weights.
    """

    name = ""

    def __init__(self, config: Any, state_dict: dict[str, torch.Tensor], trust_remote_code: bool = False):
        self.config = config.get_text_config()
        self.batch: dict[int, int] = {}
        self.lengths: dict[int, int] = {}
        self.config._attn_implementation = self.name
        with parameters_on_meta():
            self.model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
        self.attention = self.make_attention()
        inner = {
            name.removeprefix("model."): state_dict[name] for name in state_dict if not name.startswith("lm_head")
        }
        self.model.load_state_dict(inner, assign=True)
        self.model.eval()
        self.head = {
            name: state_dict[f"lm_head.{name}"] for name in ("weight", "bias") if f"lm_head.{name}" in state_dict
        }

    def make_attention(self) -> dict[int, EngineAttention]:
        """Make the attention of every cache slot by the rules of an engine; every engine's class defines it."""
        raise NotImplementedError

    def further_arguments(self) -> dict[str, Any]:
        return {}

    @torch.no_grad()
    def read(self, texts: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        """Read the next tokens of some texts in one forward pass and return their logits `[T, V]`."""
        self.batch.clear()
        self.batch.update({text: len(tokens) for text, tokens in texts.items()})
        starts = {text: self.lengths.get(text, 0) for text in texts}
        positions = [starts[text] + at for text, tokens in texts.items() for at in range(len(tokens))]
        outputs = self.model(
            input_ids=torch.tensor([[token for tokens in texts.values() for token in tokens]]),
            inputs_embeds=None,
            use_cache=False,
            position_ids=torch.tensor([positions]),
            return_dict=False,
            **self.further_arguments(),
        )
        self.lengths.update({text: starts[text] + len(tokens) for text, tokens in texts.items()})
        logits = nn.functional.linear(outputs[0][0], **self.head)
        cap = getattr(self.config, "final_logit_softcapping", None)
        logits = logits if cap is None else torch.tanh(logits / cap) * cap
        logits = logits * getattr(self.config, "logit_scale", 1.0)
        return dict(zip(texts, logits.split(list(self.batch.values())), strict=True))


class Vllm(Engine):
    """vLLM since September 2026: it looks for attention modules and puts an attention into each."""

    name = "vllm"

    def make_attention(self) -> dict[int, EngineAttention]:
        found: dict[int, nn.Module] = {}
        for module in self.model.modules():
            call = interface_call(type(module))
            config = getattr(module, "config", None)
            index = getattr(module, "layer_idx", None)
            if call is None or getattr(config, "_attn_implementation", None) != "vllm" or not isinstance(index, int):
                continue
            if index in found:
                raise ValueError(f"Layer {index} dispatches attention from more than one module")
            found[index] = module
        if any(not getattr(module, "is_causal", True) for module in self.model.modules()):
            raise ValueError("taken for an encoder")
        layer_types = getattr(self.config, "layer_types", None)
        for index in range(self.config.num_hidden_layers):
            if index not in found:
                raise ValueError(f"Layer {index} does not dispatch through the Transformers attention interface")
            module = found[index]
            scale = read_scale(interface_call(type(module)), module)
            is_sliding = bool(layer_types) and layer_types[index] == "sliding_attention"
            # an attention that is not told otherwise takes the model's window, which it has if all layers are alike
            is_alike = len(set(layer_types or ())) < 2
            window = getattr(self.config, "sliding_window", None) if is_sliding or is_alike else None
            cap = getattr(self.config, "attn_logit_softcapping", None)
            module.attn = EngineAttention(self, scale, window, cap)
        return {index: module.attn for index, module in found.items()}


def interface_call(module_class: type[nn.Module]) -> ast.Call | None:
    """Find the call of a function read from `ALL_ATTENTION_FUNCTIONS` in the text of a forward that has only one."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(module_class.forward))))
    except (OSError, TypeError, SyntaxError):
        return None
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            read = node.value.func if isinstance(node.value, ast.Call) else node.value
            if isinstance(read, ast.Attribute | ast.Subscript) and isinstance(read.value, ast.Name):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if read.value.id == "ALL_ATTENTION_FUNCTIONS":
                    names |= {target.id for target in targets if isinstance(target, ast.Name)}
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    ]
    return calls[0] if len(calls) == 1 else None


def read_scale(call: Any, module: nn.Module) -> float:
    """Read the scaling that a module hands over: a number, or an attribute of the module."""
    (given,) = [keyword.value for keyword in call.keywords if keyword.arg == "scaling"]
    value = given.value if isinstance(given, ast.Constant) else None
    if isinstance(given, ast.Attribute) and isinstance(given.value, ast.Name) and given.value.id == "self":
        value = getattr(module, given.attr, None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"the scaling of {type(module).__name__} cannot be read")
    return float(value)


def vllm_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    # whatever else a layer hands over is dropped, and so is the mask
    return module.attn(*packed(query, key, value)), None


class Sglang(Engine):
    """SGLang's fallback, whose contract is that of earlier releases of vLLM: an attention for every layer index."""

    name = "sglang"

    def make_attention(self) -> dict[int, EngineAttention]:
        layer_types = getattr(self.config, "layer_types", None)
        attention = {}
        for index in range(self.config.num_hidden_layers):
            is_sliding = layer_types is not None and layer_types[index] == "sliding_attention"
            window = self.config.sliding_window if is_sliding else None
            attention[index] = EngineAttention(self, scale=float("nan"), window=window, softcap=None)
        return attention

    def further_arguments(self) -> dict[str, Any]:
        return {"forward_batch": object(), "attention_instances": self.attention}


def sglang_attention(
    module, query, key, value, attention_mask, scaling=None, attention_instances=None, forward_batch=None, **kwargs
):
    attention = attention_instances[module.layer_idx]
    if scaling is not None:
        attention.scale = float(scaling)
    assert forward_batch is not None
    return attention(*packed(query, key, value)), None


AttentionInterface.register("vllm", vllm_attention)
AttentionInterface.register("sglang", sglang_attention)
ENGINES = {engine.name: engine for engine in (Vllm, Sglang)}
