"""What a way to decode costs in time and memory."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ..models.compile_seams import compile_on_any_device
from ..models.evaluation_mode import evaluation_mode
from ..models.transformers_seams import cache_of
from .bench_quality import ScriptedExits, oracle_loops
from .bench_settings import BenchSetting


@dataclass
class Memory:
    """What a run of a setting keeps in memory.

    Args:
        kv_bytes_per_token (`float`, *optional*): bytes of the tensors in the cache, for each token of each row.
        peak_bytes (`int`, *optional*): the most memory in use during the run, less that in use before it; `None` where
            the system does not tell.
    """

    kv_bytes_per_token: float | None = None
    peak_bytes: int | None = None


# generates, and returns the cache if there is one
Run = Callable[[], Any]


def num_prompts(setting: BenchSetting, batch: int) -> int:
    """Return how many prompts a run has: with depth batching twice as many as run at once, so that none waits."""
    return 2 * batch if setting.kind == "batching" else batch


def make_run(setting: BenchSetting, model: Any, prompts: torch.Tensor, new_tokens: int) -> Run:
    """Make the run of a setting that is timed: greedy generation of a fixed number of tokens.

    Args:
        setting (`BenchSetting`): the setting.
        model (`PreTrainedModel`): the model that it runs.
        prompts (`torch.LongTensor` of shape `[B, T]`): the prompts, as many as [`num_prompts`] says.
        new_tokens (`int`): tokens to generate for each prompt.

    Raises:
        ValueError: if the model has no such way to generate.
    """
    prompts = prompts.to(model.device)
    if setting.kind == "batching":
        return _batched_run(setting, model, prompts, new_tokens)
    if setting.kind == "compiled":
        setting = replace(setting, generation=setting.generation | {"compile_config": compile_on_any_device()})
    if setting.kind != "oracle":
        return lambda: _generate(model, prompts, new_tokens, setting.arguments | setting.generation)
    num_loops = setting.arguments["num_loops"]
    text: Any = _generate(model, prompts, new_tokens, setting.arguments).sequences
    exit_loops = oracle_loops(model, text, num_loops, setting.margin)

    def run() -> Any:
        return _generate(model, prompts, new_tokens, setting.arguments | {"exit_criterion": ScriptedExits(exit_loops)})

    return run


def _batched_run(setting: BenchSetting, model: Any, prompts: torch.Tensor, new_tokens: int) -> Run:
    if not hasattr(model, "generate_depth_batch"):
        raise ValueError(f"a {model.config.model_type} model has no continuous depth batching")
    length = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "do_sample": False}

    def run() -> None:
        with evaluation_mode(model):
            model.generate_depth_batch(list(prompts), max_batch_rows=len(prompts) // 2, **length, **setting.arguments)

    return run


def _generate(model: Any, prompts: torch.Tensor, new_tokens: int, arguments: dict[str, Any]) -> Any:
    with evaluation_mode(model):
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            # no row ends before the others
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            **arguments,
        )


def timed(run: Run, device: torch.device) -> tuple[float, float]:
    """Return the seconds of a run on the clock, and the seconds of this process on all processors."""
    _synchronize(device)
    clock, processor = time.perf_counter(), time.process_time()
    run()
    _synchronize(device)
    return time.perf_counter() - clock, time.process_time() - processor


def measure_memory(run: Run, device: torch.device, num_tokens: int) -> Memory:
    """Measure the memory of a run.

    Args:
        run (`Callable`): the run.
        device (`torch.device`): where it computes.
        num_tokens (`int`): tokens in its cache, of all rows.
    """
    before = _reset_peak(device)
    outputs = run()
    peak = _peak(device)
    cache = cache_of(outputs) if outputs is not None else None
    return Memory(
        None if cache is None else cache_bytes(cache) / num_tokens,
        None if before is None or peak is None else max(0, peak - before),
    )


def cache_bytes(cache: Any) -> int:
    """Add up the bytes of all tensors in a cache."""
    tensors = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    storages = {tensor.data_ptr(): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in storages.values())


def plain_llama(config: Any, num_layers: int, seed: int) -> LlamaForCausalLM:
    """Make a Llama of random weights with the sizes of a decoder and another number of layers.

    Args:
        config (`PreTrainedConfig`): the decoder's configuration, or that of a model over it.
        num_layers (`int`): number of layers.
        seed (`int`): seed of the weights.
    """
    names = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
        "max_position_embeddings",
    )
    sizes = {name: getattr(config, name, None) for name in names}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=num_layers)).eval()


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _reset_peak(device: torch.device) -> int | None:
    """Let the peak of memory in use start from now, and return the bytes in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        # what is free in the allocator would be used without any growth
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        # not on Linux
        return None
    return _status_bytes("VmRSS")


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status_bytes("VmHWM")


def _status_bytes(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
