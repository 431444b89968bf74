# Copyright 2026 The hf_loop authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Configuration of the looped language model."""

from typing import Any, Literal

from .checks import check_num_calls, check_positive_int, strict
from .configuration_recurrent import RecurrentConfig
from .schedules import LoopedDepth


# what other fields must be with `injection="messages"`: its states are of several vectors, and differ in their number
# before and after the first loop
MESSAGE_SCHEDULE: dict[str, Any] = {
    "state_init": "input",
    "loop_update": "replace",
    "loop_norm": "none",
    "coda_norm": False,
    "state_projection": False,
}


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
@strict
class LoopedConfig(RecurrentConfig):
    r"""
    A looped language model runs the first layers of its backbone once (prelude), the middle ones `num_loops` times
    (core), and the last ones once (coda).

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the decoder, by default Llama's; any decoder in the table of `README.md`. Fields such as
            `vocab_size` or `hidden_size` may also be given directly if this is a dictionary or left out; they are read
            and written through to it.
        num_prelude_layers (`int`, *optional*, defaults to 0):
            Backbone layers that run once before the core.
        num_coda_layers (`int`, *optional*, defaults to 0):
            Backbone layers that run once after the core.
        num_loops (`int`, *optional*, defaults to 4):
            Number of loops, the times that the core runs, unless the call says otherwise.
        injection (`str`, *optional*, defaults to `"none"`):
            How the prelude's output `e` enters the state `s` before each loop: `"none"`, `"add"` (`s + e`),
            `"unit_add"` (`s / |s| + e / |e|`, as in transformers' `dory`), `"messages"` (`e`, with messages from `s`
            to the layers, in transformers' `inkling2_loop` alone), `"concat"` (a linear map of `[s; e]`,
            https://huggingface.co/papers/2502.05171), `"diagonal"` (`exp(-D A) s + D B norm(e)`,
            https://huggingface.co/papers/2604.12946) or `"orthogonal"` (the same, where `exp(-D A) s` loses its
            component along `D B norm(e)`, ifm-ai/xllm-loop).
        injection_norm (`bool`, *optional*, defaults to `True`):
            Whether the injections `"diagonal"` and `"orthogonal"` norm `e`.
        injection_bias (`bool`, *optional*, defaults to `False`):
            Whether the linear map of the injection `"concat"` has a bias.
        state_init (`str`, *optional*, defaults to `"input"`):
            The state before the first loop: `"input"` (`e` itself), `"zeros"`, `"normal"` (truncated normal noise),
            `"sine_normal"` (normal noise from the hash of ifm-ai/xllm-loop; see
            `state_noise.py` for both) or `"learned"` (one trained vector).
        state_std (`float`, *optional*):
            Standard deviation of a state of noise, by default `sqrt(2 / (5 hidden_size))`.
        state_seed (`int`, *optional*, defaults to 0):
            Seed of the `"sine_normal"` state.
        loop_update (`str`, *optional*, defaults to `"replace"`):
            How a loop uses the core's result `f(s)`: `"replace"` (`s <- f(s)`) or `"damped"`
            (`s <- s + loop_step (f(s) - s)`, the training-free looping of https://huggingface.co/papers/2605.23872).
        loop_step (`float`, *optional*):
            The share of the update that `"damped"` keeps, above 0 and at most 1, by default `1 / num_loops` of the
            call. A quarter mends most of the updates that harm an answer (https://huggingface.co/papers/2609.16665).
        loop_norm (`str`, *optional*, defaults to `"none"`):
            The norm of the state at the end of every loop: `"none"`, `"own"` (a separate RMS norm), `"weightless"`
            (an RMS norm without gains) or `"final"` (the backbone's final norm, as in
            https://huggingface.co/papers/2510.25741; without a coda it is not applied again before the head).
        coda_norm (`bool`, *optional*, defaults to `False`):
            Whether the backbone's final norm is also applied between the last loop and the coda, as in
            https://huggingface.co/papers/2502.05171.
        state_projection (`bool`, *optional*, defaults to `False`):
            Whether a linear map, initialized as the identity, is applied to the state between the last loop and the
            coda, as in https://huggingface.co/papers/2604.12946.
        exit_gate (`bool`, *optional*, defaults to `False`):
            Whether the model has a gate, a linear map of the state to one number, that says after every loop how
            probable it is that a token needs no further loop, as in https://huggingface.co/papers/2510.25741. The gate
            reads the state through the backbone's final norm, as the head does after the last loop of a model without
            a coda. It changes no logits.

        loop_lora_rank (`int`, *optional*, defaults to 0):
            Rank of the update that every loop adds to the core's linear maps, 0 for none
            (https://huggingface.co/papers/2410.20672, see `loop_lora.py`).
        loop_lora_num_loops (`int`, *optional*):
            Number of loops with an update of their own, by default `num_loops` when the model is made.
        loop_lora_beyond (`str`, *optional*, defaults to `"last"`):
            Update of later loops: `"last"` (the last one), `"cyclic"` (all of them again, in order) or `"none"`.
        loop_lora_target_modules (`list[str]`, *optional*):
            Names, or ends of names, of the linear maps to update, for example `["q_proj", "mlp.down_proj"]`. By
            default all linear maps of the core.
        loop_lora_vectors (`bool`, *optional*, defaults to `False`):
            Whether the gains of norms and all biases of the core also have an update per loop.

    Raises:
        ValueError: if a field is out of range, or the prelude and the coda leave no layer for the core.

    Example:

    ```python
    >>> from transformers import LlamaConfig
    >>> from hf_loop import LoopedConfig, LoopedForCausalLM

    >>> backbone_config = LlamaConfig(num_hidden_layers=4)
    >>> config = LoopedConfig(backbone_config=backbone_config, num_prelude_layers=1, num_coda_layers=1)
    >>> config.num_core_layers, config.num_hidden_layers
    (2, 10)
    ```
    """

    model_type = "looped_lm"
    keys_to_ignore_at_inference = [
        *("cache", "past_key_values", "num_loops", "exit_loops", "loop_states", "loop_logits", "contrast_logits")
    ]

    num_prelude_layers: int = 0
    num_coda_layers: int = 0
    num_loops: int = 4
    injection: Literal["none", "add", "unit_add", "messages", "concat", "diagonal", "orthogonal"] = "none"
    injection_norm: bool = True
    injection_bias: bool = False
    state_init: Literal["input", "zeros", "normal", "sine_normal", "learned"] = "input"
    state_std: float | None = None
    state_seed: int = 0
    loop_update: Literal["replace", "damped"] = "replace"
    loop_step: float | int | None = None
    loop_norm: Literal["none", "own", "weightless", "final"] = "none"
    coda_norm: bool = False
    state_projection: bool = False
    exit_gate: bool = False
    loop_lora_rank: int = 0
    loop_lora_num_loops: int | None = None
    loop_lora_beyond: Literal["last", "cyclic", "none"] = "last"
    loop_lora_target_modules: list[str] | None = None
    loop_lora_vectors: bool = False

    def __setattr__(self, key, value):
        # the values that mean "none"
        absent = {"loop_lora_num_loops": None, "loop_lora_rank": 0}
        if key in absent and value != absent[key]:
            check_positive_int(key, value)
        super().__setattr__(key, value)

    def check_depth(self) -> None:
        if self.num_core_layers < 1:
            raise ValueError(
                f"`num_prelude_layers` ({self.num_prelude_layers}) and `num_coda_layers` ({self.num_coda_layers}) "
                f"leave no core layer: the backbone has {self.backbone_config.num_hidden_layers} layers"
            )
        check_num_calls(self.num_loops, self.num_core_layers)

    def validate_architecture(self):
        """Refuse layer counts that leave no core, and schedules that lose the input."""
        self.check_depth()
        if self.state_std is not None and self.state_std < 0:
            raise ValueError(f"`state_std` must not be negative, got {self.state_std}")
        if self.loop_step is not None and self.loop_update != "damped":
            raise ValueError(
                f"`loop_step` needs `loop_update='damped'`, got loop_step={self.loop_step} with "
                f"loop_update={self.loop_update!r}"
            )
        if self.coda_norm and self.num_coda_layers == 0:
            raise ValueError(
                "`coda_norm` needs `num_coda_layers` of at least 1: without a coda the final norm is applied anyway"
            )
        if self.loop_lora_vectors and not self.loop_lora_rank:
            raise ValueError("`loop_lora_vectors` needs `loop_lora_rank` of at least 1")
        if not self.injection_norm and self.injection not in ("diagonal", "orthogonal"):
            raise ValueError(
                f"`injection_norm=False` needs `injection` 'diagonal' or 'orthogonal', got {self.injection!r}: the "
                "others have no norm"
            )
        if self.injection_bias and self.injection != "concat":
            raise ValueError(f"`injection_bias` needs `injection='concat'`, got {self.injection!r}")
        if self.state_seed != 0 and self.state_init != "sine_normal":
            raise ValueError(
                f"`state_seed` needs `state_init='sine_normal'`, got state_seed={self.state_seed} with "
                f"state_init={self.state_init!r}"
            )
        if self.injection == "none" and self.state_init != "input":
            raise ValueError(
                f"`state_init={self.state_init!r}` needs an injection: with `injection='none'` the input never "
                "reaches the core"
            )
        self._check_messages()

    def _check_messages(self) -> None:
        """Refuse messages to layers that take none, and layers that take them in another schedule than their own."""
        decoder = self.backbone_config
        takes_messages = hasattr(decoder, "loop_layer_index_start")
        if takes_messages != (self.injection == "messages"):
            if takes_messages:
                must_be = f"must be 'messages' over {decoder.model_type} layers, got {self.injection!r}"
            else:
                must_be = f"'messages' needs layers that take them, and those of {decoder.model_type} do not"
            raise ValueError(f"`injection` {must_be}")
        if not takes_messages:
            return
        layers_of_core = {
            "num_prelude_layers": decoder.loop_layer_index_start,
            "num_coda_layers": decoder.num_hidden_layers - decoder.loop_layer_index_end,
        }
        for name, value in {**layers_of_core, **MESSAGE_SCHEDULE}.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"`{name}` over {decoder.model_type} layers must be {value!r}, got {getattr(self, name)!r}"
                )

    @property
    def starts_from_noise(self) -> bool:
        """Whether the state before the first loop is noise."""
        return self.state_init in ("normal", "sine_normal")

    @property
    def num_core_layers(self) -> int:
        """Number of backbone layers inside the loop."""
        return self.backbone_config.num_hidden_layers - self.num_prelude_layers - self.num_coda_layers

    def depth(self, model: Any = None, norm: Any = None) -> LoopedDepth:
        return LoopedDepth(self, model, norm)


__all__ = ["LoopedConfig"]
