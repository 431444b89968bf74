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
"""Configurations of the hierarchical language and puzzle models."""

from typing import Any, ClassVar, Literal, Self

from .checks import check_num_calls, check_positive_int, strict
from .configuration_recurrent import RecurrentConfig
from .hierarchical_presets import preset_fields
from .schedules import HierarchicalDepth


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
@strict
class HierarchicalConfig(RecurrentConfig):
    r"""
    A hierarchical model carries a slow state and a fast one. In each of `num_loops` slow cycles the fast stack
    updates the fast state `low_cycles` times, then the slow stack updates the slow state once
    (https://huggingface.co/papers/2506.21734).

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the decoder, by default Llama's: any decoder in the table of `README.md`, whose layers are
            split into a fast and a slow stack of equal size, or `"hrm_text"`, which has two stacks of its own. Fields
            such as `vocab_size` or `hidden_size` may also be given directly if this is a dictionary or left out; they
            are read and written through to it.
        num_loops (`int`, *optional*, defaults to 2):
            Number of slow cycles, unless the call says otherwise.
        low_cycles (`int`, *optional*, defaults to 3):
            Updates of the fast state in each slow cycle.
        num_prelude_layers (`int`, *optional*, defaults to 0):
            Layers that run once before the first cycle; `x` is their output.
        num_coda_layers (`int`, *optional*, defaults to 0):
            Layers that run once after the last cycle, on the slow state.
        stack_repeats (`int`, *optional*, defaults to 1):
            How often a stack call runs the layers of its stack.
        shared_stack (`bool`, *optional*, defaults to `False`):
            Whether one stack of all layers updates both states (https://huggingface.co/papers/2510.04871).
        num_latent_states (`int`, *optional*, defaults to 2):
            Number of states: 2, or 1 for a single state, which the shared stack updates `low_cycles` times in every
            cycle (https://huggingface.co/papers/2512.14693).
        injection (`str`, *optional*, defaults to `"none"`):
            How the input `x` enters the stacks: `"add"` (added to the fast stack's input in every update),
            `"diagonal"` (before every call of both stacks, by the injection of that name of [`LoopedConfig`], as in
            ifm-ai/xllm-loop) or `"none"` (through the slow state alone, as in
            https://huggingface.co/papers/2605.20613).
        injection_norm (`bool`, *optional*, defaults to `True`):
            Whether the injection `"diagonal"` norms `x`.
        state_init (`str`, *optional*, defaults to `"input"`):
            The states before the first cycle. With `"input"` (`x` itself) and `"zeros"` for the slow state, the fast
            state starts from the backbone's own initial vector, or from zero if it has none. With `"random"` both
            start from vectors that are drawn once, saved with the weights and not trained, the same at every position.
            With `"sine_normal"` the slow state starts from `x` and the fast one from the noise of that name, see
            `state_noise.py`, the same for every example.
        state_std (`float`, *optional*):
            Standard deviation of the noise, by default `sqrt(2 / (5 hidden_size))`.
        state_seed (`int`, *optional*, defaults to 0):
            Seed of the noise.
        stack_norm (`str`, *optional*, defaults to `"weightless"`):
            The norm at the end of every stack call: `"none"`, `"weightless"` (an RMS norm without gains) or `"final"`
            (the backbone's final norm, which is then not applied again before the head).
        embedding_scale (`float`, *optional*, defaults to 1.0):
            Factor of the first layers' input, on top of the backbone's own scaling.
        gradient (`str`, *optional*, defaults to `"full"`):
            Stack calls with gradient: `"full"` (all), `"last_cycle"` (those of the last slow cycle), `"one_step"` (the
            last of each stack) or `"last_k"` (all slow calls, and the last `backprop_low_cycles` fast calls of every
            slow cycle).
        backprop_low_cycles (`list[int]`, *optional*):
            For `"last_k"`, the number of fast calls with gradient in each of the last slow cycles, in order. Earlier
            cycles have one.

    Raises:
        ValueError: if a field is out of range or does not fit another one.

    Example:

    ```python
    >>> from transformers import LlamaConfig
    >>> from hf_loop import HierarchicalConfig

    >>> config = HierarchicalConfig(backbone_config=LlamaConfig(num_hidden_layers=4), num_loops=2, low_cycles=3)
    >>> config.num_stack_layers, config.num_hidden_layers
    (2, 16)
    ```
    """

    model_type = "hierarchical_lm"
    keys_to_ignore_at_inference = ["cache", "past_key_values", "num_loops"]

    num_loops: int = 2
    low_cycles: int = 3
    num_prelude_layers: int = 0
    num_coda_layers: int = 0
    stack_repeats: int = 1
    shared_stack: bool = False
    num_latent_states: Literal[1, 2] = 2
    injection: Literal["none", "add", "diagonal"] = "none"
    injection_norm: bool = True
    state_init: Literal["input", "zeros", "random", "sine_normal"] = "input"
    state_std: float | None = None
    state_seed: int = 0
    stack_norm: Literal["none", "weightless", "final"] = "weightless"
    embedding_scale: float | int = 1.0
    gradient: Literal["full", "last_cycle", "one_step", "last_k"] = "full"
    backprop_low_cycles: list[int] | None = None

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """Make the configuration of a published model, with its authors' sizes and schedule.

        Args:
            name (`str`): `"hrm"`, `"trm"`, `"urm"`, `"hrm_text"`, or `"plain"`, the transformer that HRM's authors
                compare with, which runs its layers once.
            overrides: fields of this configuration or the backbone's to change. `intermediate_size` is computed from
                `hidden_size` as in the papers.

        Raises:
            ValueError: if there is no such preset, or a field is refused.
        """
        fields = preset_fields(name)
        others = fields.schedule.keys() - cls.__dataclass_fields__.keys()
        if others:
            raise ValueError(
                f"the preset {name!r} solves puzzles: use `HierarchicalPuzzleConfig.from_preset({name!r})`"
            )
        own = {key: overrides.pop(key) for key in list(overrides) if key in cls.__dataclass_fields__}
        return cls(**fields.schedule | own, backbone_config=fields.backbone(overrides))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Make a configuration, also from files saved when this class had the fields of puzzle models as well."""
        if cls.model_type == "hierarchical_lm":
            fields = HierarchicalPuzzleConfig.__dataclass_fields__
            puzzle_fields = config_dict.keys() & (fields.keys() - cls.__dataclass_fields__.keys())
            # a configuration saved without a model names no class: puzzle models have other values in these fields
            differs = any(config_dict[name] != fields[name].default for name in puzzle_fields)
            classes = config_dict.get("architectures") or []
            if any("Puzzle" in str(name) for name in classes) or (differs and not classes):
                return HierarchicalPuzzleConfig.from_dict(config_dict, **kwargs)
            config_dict = {name: value for name, value in config_dict.items() if name not in puzzle_fields}
        # the model type in the file would replace that of the class
        return super().from_dict({**config_dict, "model_type": cls.model_type}, **kwargs)

    def __setattr__(self, key, value):
        if key in ("low_cycles", "stack_repeats"):
            check_positive_int(key, value)
        super().__setattr__(key, value)

    def check_depth(self) -> None:
        if self.num_inner_layers < 1:
            raise ValueError(
                f"`num_prelude_layers` ({self.num_prelude_layers}) and `num_coda_layers` ({self.num_coda_layers}) "
                f"leave no layers for the stacks: the backbone has {self.backbone_config.num_hidden_layers}"
            )
        check_num_calls(self.num_loops, self.num_calls * self.num_stack_layers * self.stack_repeats)

    def validate_architecture(self):
        """Refuse layers that cannot be split into two stacks, and schedules that lose the input or its gradient."""
        has_two_stacks = hasattr(self.backbone_config, "num_layers_per_stack")
        if self.num_latent_states == 1 and not self.shared_stack:
            raise ValueError("`num_latent_states=1` needs `shared_stack=True`: there is no second state to update")
        if has_two_stacks and self.shared_stack:
            raise ValueError(
                f"`shared_stack` must be False for a {self.backbone_config.model_type} backbone, which has two stacks"
            )
        if has_two_stacks and self.num_prelude_layers + self.num_coda_layers > 0:
            raise ValueError(
                f"`num_prelude_layers` and `num_coda_layers` must be 0 for a {self.backbone_config.model_type} "
                f"backbone, all of whose layers are in its stacks, got {self.num_prelude_layers} and "
                f"{self.num_coda_layers}"
            )
        self.check_depth()
        if not has_two_stacks and not self.shared_stack and self.num_inner_layers % 2:
            outside = " without prelude and coda" if self.num_prelude_layers + self.num_coda_layers else ""
            raise ValueError(
                f"`backbone_config.num_hidden_layers`{outside} must be even for two stacks of equal size, got "
                f"{self.num_inner_layers}; set `shared_stack=True` for one stack"
            )
        if self.injection == "none" and self.state_init not in ("input", "sine_normal"):
            raise ValueError(
                f"`state_init={self.state_init!r}` needs `injection='add'`: otherwise the input reaches no layer"
            )
        if self.injection == "none" and self.gradient in ("last_cycle", "one_step"):
            raise ValueError(
                f"`gradient={self.gradient!r}` needs `injection='add'`: otherwise no gradient reaches the embeddings"
            )
        if not self.injection_norm and self.injection != "diagonal":
            raise ValueError(f"`injection_norm=False` needs `injection='diagonal'`, got {self.injection!r}")
        if self.state_init == "sine_normal" and self.num_latent_states == 1:
            raise ValueError("`state_init='sine_normal'` needs `num_latent_states=2`: its noise is the fast state")
        if (self.state_seed, self.state_std) != (0, None) and self.state_init != "sine_normal":
            raise ValueError(
                f"`state_seed` and `state_std` need `state_init='sine_normal'`, got {self.state_seed} and "
                f"{self.state_std} with {self.state_init!r}"
            )
        if self.state_std is not None and self.state_std < 0:
            raise ValueError(f"`state_std` must not be negative, got {self.state_std}")
        if (self.backprop_low_cycles is not None) != (self.gradient == "last_k"):
            raise ValueError(
                "`backprop_low_cycles` must be given with `gradient='last_k'` and only then, got "
                f"backprop_low_cycles={self.backprop_low_cycles} with gradient={self.gradient!r}"
            )
        if self.backprop_low_cycles is not None and min(self.backprop_low_cycles, default=0) < 0:
            raise ValueError(f"`backprop_low_cycles` must not be negative, got {self.backprop_low_cycles}")

    @property
    def num_calls(self) -> int:
        """Number of stack calls in one slow cycle."""
        return self.low_cycles + self.num_latent_states - 1

    @property
    def num_stack_layers(self) -> int:
        """Number of layers of one stack."""
        own = getattr(self.backbone_config, "num_layers_per_stack", None)
        if own is not None:
            return own
        return self.num_inner_layers // (1 if self.shared_stack else 2)

    @property
    def num_inner_layers(self) -> int:
        """Number of layers of all stacks."""
        return self.backbone_config.num_hidden_layers - self.num_prelude_layers - self.num_coda_layers

    @property
    def prefix_lm(self) -> bool:
        """Whether tokens of type 1 see each other in both directions, as set in the backbone."""
        return getattr(self.backbone_config, "prefix_lm", False)

    def carries_gradient(self, num_loops: int, cycle: int, call: int, num_backprop_loops: int | None = None) -> bool:
        """Return whether a stack call has gradient, by `gradient` and `backprop_low_cycles`.

        Args:
            num_loops (`int`): number of slow cycles of the forward pass.
            cycle (`int`): index of the slow cycle, from 0.
            call (`int`): index of the stack call in it, from 0; with two states the last is the slow stack's.
            num_backprop_loops (`int`, *optional*): number of last slow cycles that gradient may reach, by default all.
        """
        if num_backprop_loops is not None and cycle < num_loops - num_backprop_loops:
            return False
        gradient = self.gradient
        if gradient == "full":
            return True
        if gradient == "last_k":
            counts = self.backprop_low_cycles or []
            counts = [1] * max(0, num_loops - len(counts)) + counts
            return call >= self.low_cycles - counts[cycle]
        is_last_cycle = cycle == num_loops - 1
        return is_last_cycle and (gradient == "last_cycle" or call >= self.low_cycles - 1)

    def depth(self, model: Any = None, norm: Any = None) -> HierarchicalDepth:
        return HierarchicalDepth(self, model, norm)


# trf-ignore: TRF057 as above
@strict
class HierarchicalPuzzleConfig(HierarchicalConfig):
    r"""
    A hierarchical model that solves puzzles in segments ([`HierarchicalForPuzzle`]).

    Args:
        halting (`str`, *optional*, defaults to `"none"`):
            When a puzzle halts after a segment: `"q_learning"` (the value of halting is above that of continuing,
            2506.21734), `"binary"` (the logit of being solved is above zero, 2510.04871), `"fixed_point"` (the slow
            state changed by less than `fixed_point_tolerance` of its length) or `"none"` (never).
        max_segments (`int`, *optional*, defaults to 16):
            Number of segments after which every puzzle halts.
        fixed_point_tolerance (`float`, *optional*, defaults to 0.02):
            Largest relative change of the slow state at a fixed point, for `halting="fixed_point"`.
        cell_loss (`str`, *optional*, defaults to `"softmax"`):
            Cross entropy of a `"softmax"` or of a `"stablemax"`, which replaces the exponential by `x + 1` above zero
            and `1 / (1 - x)` below.
        num_puzzles (`int`, *optional*, defaults to 0):
            Number of learned puzzle embeddings, one for each puzzle in the sense of 2506.21734 (a task of its own).
        num_puzzle_tokens (`int`, *optional*, defaults to 0):
            Number of positions before the cells over which a puzzle embedding is split.
        puzzle_embedding_size (`int`, *optional*):
            Size of a puzzle embedding, by default `hidden_size`; it is padded with zeros to fill the positions.
        kwargs:
            Fields of [`HierarchicalConfig`].

    Raises:
        ValueError: if a field is out of range or does not fit another one.

    Example:

    ```python
    >>> from hf_loop import HierarchicalPuzzleConfig

    >>> config = HierarchicalPuzzleConfig.from_preset("trm", vocab_size=6, hidden_size=64)
    >>> config.halting, config.low_cycles
    ('binary', 6)
    ```
    """

    model_type = "hierarchical_puzzle"
    kind: ClassVar[str] = "puzzle"
    keys_to_ignore_at_inference = ["num_loops", "carry"]

    halting: Literal["none", "q_learning", "binary", "fixed_point"] = "none"
    max_segments: int = 16
    fixed_point_tolerance: float | int = 0.02
    cell_loss: Literal["softmax", "stablemax"] = "softmax"
    num_puzzles: int = 0
    num_puzzle_tokens: int = 0
    puzzle_embedding_size: int | None = None

    def __setattr__(self, key, value):
        if key == "max_segments":
            check_positive_int(key, value)
        super().__setattr__(key, value)

    def validate_architecture(self):
        """Refuse puzzle embeddings that do not fit their positions, and a tolerance of zero or less."""
        super().validate_architecture()
        for name in ("num_prelude_layers", "num_coda_layers"):
            if getattr(self, name):
                raise ValueError(f"`{name}` must be 0 for puzzles, got {getattr(self, name)}")
        if self.state_init == "sine_normal":
            raise ValueError("`state_init` must not be 'sine_normal' for puzzles, whose states are carried on")
        if self.fixed_point_tolerance <= 0:
            raise ValueError(f"`fixed_point_tolerance` must be above 0, got {self.fixed_point_tolerance}")
        if (
            self.num_puzzles < 0
            or self.num_puzzle_tokens < 0
            or (self.num_puzzles > 0) != (self.num_puzzle_tokens > 0)
        ):
            raise ValueError(
                "`num_puzzles` and `num_puzzle_tokens` must both be 0 or both be positive, got "
                f"{self.num_puzzles} and {self.num_puzzle_tokens}"
            )
        size, room = self.puzzle_embedding_size, self.num_puzzle_tokens * self.hidden_size
        if size is not None and not 0 < size <= room:
            raise ValueError(
                f"`puzzle_embedding_size` must be from 1 to `num_puzzle_tokens` ({self.num_puzzle_tokens}) times "
                f"`hidden_size` ({self.hidden_size}), got {size}"
            )


__all__ = ["HierarchicalConfig", "HierarchicalPuzzleConfig"]
