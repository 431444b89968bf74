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
"""The hierarchical puzzle model (HRM, TRM, URM), which predicts all cells of a puzzle at once, in segments.

A segment is one pass of the schedule in `modeling_hierarchical.py`. The next segment starts from its final states (the
carry), without gradient, and training makes an optimizer step after every segment (deep supervision, see
`hf_loop.trainer.DeepSupervisionTrainer`). A head at the first position predicts whether a puzzle is solved.
"""

import functools
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import auto_docstring, can_return_tuple

from .backbone import PUZZLE_BACKBONES, TWO_STACK_BACKBONES, Backbone, LayerInputs, compute_logits
from .checks import check_count
from .configuration_hierarchical import HierarchicalPuzzleConfig
from .cost import PARAMETERS, Measure, Work, given_depth, norm_work, pass_work
from .family import Family
from .family_checks import check_both_directions
from .generation_puzzle import PuzzleSolvingMixin
from .keyword_checks import ENGINE_KEYWORDS, check_keywords
from .modeling_hierarchical import HierarchicalStacks, describe_cycles
from .modeling_hrm import truncated_normal_
from .modeling_recurrent import make_head
from .position_limit import check_length
from .puzzle_embeddings import HierarchicalPuzzlePreTrainedModel
from .puzzle_inputs import check_puzzles
from .puzzle_loss import IGNORE_INDEX, puzzle_loss
from .puzzle_outputs import HierarchicalCarry, HierarchicalPuzzleOutput, HierarchicalSegmentOutput
from .schedules import HierarchicalDepth
from .transformers_seams import capture_outputs, create_bidirectional_mask, merge_with_config_defaults


# initial bias of the halting head: it starts by predicting that no puzzle is solved
HALT_BIAS = -5.0


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class HierarchicalPuzzleModel(HierarchicalPuzzlePreTrainedModel, HierarchicalStacks):
    """The model of one segment, without heads.

    Args:
        config (`HierarchicalPuzzleConfig`): the backbone and the schedule.

    Raises:
        ValueError: if the backbone's layers cannot attend in both directions.
    """

    special_specs = TWO_STACK_BACKBONES | PUZZLE_BACKBONES
    no_engine = "puzzles are solved by `solve`, not token by token"
    refused_keywords = {
        **dict.fromkeys(ENGINE_KEYWORDS, no_engine),
        "position_ids": "the position of a cell is fixed",
    }

    def __init__(self, config: HierarchicalPuzzleConfig):
        super().__init__(config)
        backbone_config = config.backbone_config
        others = set(getattr(backbone_config, "layer_types", None) or []) - {"full_attention"}
        if others or self.spec.layers_take_token_ids or self.spec.position_rows > 1:
            reason = f"layers of {', '.join(sorted(others))}" if others else "layers that read more than hidden states"
            raise ValueError(
                f"`backbone_config.model_type` {backbone_config.model_type!r} has {reason}, which cannot run in both "
                "directions"
            )
        if backbone_config.model_type not in PUZZLE_BACKBONES:
            check_both_directions(backbone_config, HierarchicalPuzzleModel)
        # CODEPATH: a model of a single task needs no embedding of the task
        if config.num_puzzles:
            size = config.puzzle_embedding_size or config.hidden_size
            self.puzzle_embeddings = nn.Embedding(config.num_puzzles, size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        # only the puzzles' embedding: the backbone initializes its own
        if isinstance(module, nn.Embedding):
            init.zeros_(module.weight)

    def embed_puzzle(self, cells: torch.Tensor, puzzle_ids: torch.Tensor | None) -> torch.Tensor:
        """Put the puzzle's embedding, split over the puzzle tokens, before the embedded cells `[B, T, D]`."""
        # CODEPATH: a model of a single task has no embedding of the task
        if not self.config.num_puzzles:
            return cells
        if puzzle_ids is None:
            puzzle_ids = torch.zeros(cells.shape[0], dtype=torch.long, device=cells.device)
        embedding = self.puzzle_embeddings(puzzle_ids).to(cells)
        room = self.config.num_puzzle_tokens * cells.shape[-1]
        embedding = nn.functional.pad(embedding, (0, room - embedding.shape[-1]))
        return torch.cat([embedding.view(cells.shape[0], -1, cells.shape[-1]), cells], dim=1)

    def start_states(self, encoded: torch.Tensor, carry: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the states of the carry, or the initial states for puzzles that have not run yet."""
        initial = self.make_initial_states(encoded)
        if carry is None:
            return initial
        if carry.high.shape != encoded.shape:
            raise ValueError(f"`carry` must be of shape {tuple(encoded.shape)}, got {tuple(carry.high.shape)}")
        is_new = (carry.steps == 0)[:, None, None]
        high = torch.where(is_new, initial[0], carry.high.to(encoded))
        return high, None if initial[1] is None else torch.where(is_new, initial[1], carry.low.to(encoded))

    def make_mask(self, backbone: Backbone, encoded: torch.Tensor, attention_mask: torch.Tensor | None) -> Any:
        """Make the mask under which all positions `[B, T, D]` see each other, but not the padding.

        Raises:
            ValueError: if the layers cannot leave positions out, or a puzzle is not padded at its end.
        """
        if attention_mask is None:
            return None
        # CODEPATH: TRM's mixer of a fixed length reads all positions
        if getattr(self.config.backbone_config, "token_mixer", None) == "mlp":
            raise ValueError("`attention_mask` must be None with `token_mixer='mlp'`, which mixes all positions")
        if (attention_mask.diff(dim=1) > 0).any():
            raise ValueError("`attention_mask` must be 0 at the end of a puzzle only, where its padding belongs")
        mask = nn.functional.pad(attention_mask, (self.config.num_puzzle_tokens, 0), value=1)
        return create_bidirectional_mask(config=backbone.config, inputs_embeds=encoded, attention_mask=mask)

    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor,
        puzzle_ids: torch.Tensor | None = None,
        carry: Any = None,
        num_loops: int | None = None,
        num_backprop_loops: int | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> HierarchicalSegmentOutput:
        r"""
        puzzle_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Index of each puzzle's embedding, by default 0.
        carry (`HierarchicalCarry`, *optional*):
            The states that the segment starts from, by default the initial states.
        num_loops (`int`, *optional*):
            Number of slow cycles, by default `config.num_loops`.
        num_backprop_loops (`int`, *optional*):
            Number of last slow cycles that gradient may reach, by default as `config.gradient` allows.
        attention_mask (`torch.Tensor` of shape `(batch_size, cells)`, *optional*):
            0 at the padding that follows the cells of a smaller puzzle.

        Raises:
            ValueError: if a number of loops is not a positive integer, a cell or an id is not in its table, the carry
                does not fit the batch, or the mask is not one of padding at the end.
        """
        check_keywords(self, kwargs)
        if input_ids.device.type == "cpu":
            # on other devices `solve` asks: here it would wait for the device
            check_puzzles(self.config, input_ids, puzzle_ids)
        depth = self.depth_arguments(num_loops=num_loops, num_backprop_loops=num_backprop_loops)
        backbone = Backbone(self)
        encoded = self.embed_puzzle(backbone.embed(input_ids), puzzle_ids)
        positions = torch.arange(encoded.shape[1], device=encoded.device)[None]
        check_length(self, backbone, encoded.shape[1], None, positions)
        encoded = backbone.enter(encoded, positions)
        # every position sees all others: without a mask, attention would be causal by default
        kwargs |= {"is_causal": False} | backbone.layer_arguments(encoded)
        kwargs.pop("use_cache", None)
        mask = self.make_mask(backbone, encoded, attention_mask)
        inputs = LayerInputs(positions, backbone.rotate(encoded, positions), mask, None, False, kwargs)

        states = self.start_states(encoded, carry)
        schedule: HierarchicalDepth = backbone.depth
        run_call = functools.partial(backbone.run_call, inputs=inputs)
        high, low = schedule.run_cycles(states, encoded, run_call, **depth)
        start, change = states[0].detach(), high.detach() - states[0].detach()
        if attention_mask is not None:
            is_cell = nn.functional.pad(attention_mask, (self.config.num_puzzle_tokens, 0), value=1)[..., None] != 0
            start, change = start * is_cell, change * is_cell
        steps = torch.zeros(len(encoded), dtype=torch.long, device=encoded.device) if carry is None else carry.steps
        return HierarchicalSegmentOutput(
            last_hidden_state=schedule.finish(high),
            carry=HierarchicalCarry(high=high.detach(), steps=steps + 1, low=None if low is None else low.detach()),
            change=change.flatten(1).norm(dim=1) / start.flatten(1).norm(dim=1).clamp(min=1e-12),
        )

    def count_work(self, inputs: Mapping[str, Any], measure: Measure = PARAMETERS) -> Work:
        num_rows, num_cells = inputs["input_ids"].shape
        num_positions = num_rows * (num_cells + self.config.num_puzzle_tokens)
        return (pass_work(self, given_depth(self, inputs), measure=measure) + norm_work(self, measure)) * num_positions


# trf-ignore: TRF057 as above
class HierarchicalForPuzzle(HierarchicalPuzzlePreTrainedModel, PuzzleSolvingMixin):
    """The puzzle model with a head that predicts every cell, and a halting head.

    Args:
        config (`HierarchicalPuzzleConfig`): the backbone and the schedule.

    Example:

    ```python
    >>> from hf_loop import HierarchicalPuzzleConfig, HierarchicalForPuzzle

    >>> model = HierarchicalForPuzzle(HierarchicalPuzzleConfig.from_preset("trm", vocab_size=6, hidden_size=64))
    >>> outputs = model(input_ids, num_segments=4)
    >>> outputs = model(input_ids, carry=outputs.carry)  # the fifth segment
    ```
    """

    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: HierarchicalPuzzleConfig):
        super().__init__(config)
        self.model = HierarchicalPuzzleModel(config)
        self.adopt(self.model.backbone)
        self.lm_head = make_head(self)
        # CODEPATH: a fixed point is measured without a head
        if config.halting in ("q_learning", "binary"):
            # CODEPATH: HRM also predicts the value of continuing
            num_values = 2 if config.halting == "q_learning" else 1
            self.halt_head = nn.Linear(config.hidden_size, num_values)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self.lm_head:
            truncated_normal_(module.weight, module.in_features**-0.5)
        elif module is getattr(self, "halt_head", None):
            init.zeros_(module.weight)
            init.constant_(module.bias, HALT_BIAS)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_segments: int = 1,
        carry: Any = None,
        puzzle_ids: torch.Tensor | None = None,
        num_loops: int | None = None,
        num_backprop_loops: int | None = None,
        output_segments: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> HierarchicalPuzzleOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size, cells)`, *optional*):
            The token of every cell, -100 for cells without a label.
        num_segments (`int`, *optional*, defaults to 1):
            Number of segments. Gradient reaches only the last one.
        carry (`HierarchicalCarry`, *optional*):
            The states that the first segment starts from, by default the initial states.
        puzzle_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Index of each puzzle's embedding, by default 0.
        num_loops (`int`, *optional*):
            Number of slow cycles in a segment, by default `config.num_loops`.
        num_backprop_loops (`int`, *optional*):
            Number of last slow cycles that gradient may reach, by default as `config.gradient` allows.
        output_segments (`bool`, *optional*, defaults to `False`):
            Whether to return the logits after every segment.
        num_items_in_batch (`int`, *optional*):
            Number of labelled cells in all batches of a training step, set by `Trainer`.
        attention_mask (`torch.Tensor` of shape `(batch_size, cells)`, *optional*):
            0 at the padding that follows the cells of a smaller puzzle; labels there do not count.

        Raises:
            ValueError: if a count is not a positive integer, or [`HierarchicalPuzzleModel`] raises it.
        """
        num_segments = check_count("num_segments", num_segments)
        options = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "puzzle_ids": puzzle_ids,
            "num_loops": self.config.num_loops if num_loops is None else num_loops,
            "num_backprop_loops": num_backprop_loops,
            **kwargs,
        }
        all_logits, all_halt_logits = [], []
        for segment in range(num_segments):
            is_last = segment == num_segments - 1
            with nullcontext() if is_last else torch.no_grad():
                outputs = self.model(carry=carry, **options)
                if is_last or output_segments:
                    all_logits.append(self.read_cells(outputs))
                    all_halt_logits.append(self.read_halting(outputs))
            carry = outputs.carry
        logits, halt_logits = all_logits[-1], all_halt_logits[-1]

        loss = None
        if labels is not None:
            if attention_mask is not None:
                labels = labels.masked_fill(attention_mask == 0, IGNORE_INDEX)
            loss = puzzle_loss(
                logits,
                labels,
                self.config.cell_loss,
                halt_logits if hasattr(self, "halt_head") else None,
                self.continue_targets(carry, options),
                num_items_in_batch,
            )
        return HierarchicalPuzzleOutput(
            loss=loss,
            logits=logits,
            halt_logits=halt_logits,
            carry=carry,
            segment_logits=tuple(all_logits) if output_segments else None,
            segment_halt_logits=tuple(all_halt_logits) if output_segments and halt_logits is not None else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def read_cells(self, outputs: Any) -> torch.Tensor:
        """Compute logits of the cells, `[B, T, V]`."""
        hidden_states = outputs.last_hidden_state[:, self.config.num_puzzle_tokens :]
        return compute_logits(self.config.backbone_config, self.lm_head, hidden_states, self.model.spec)

    def read_halting(self, outputs: Any) -> torch.Tensor | None:
        """Compute `halt_logits` in float32, `[B, 1]` or `[B, 2]`, `None` without halting."""
        # CODEPATH: a fixed point is measured by the change of the slow state
        if self.config.halting == "fixed_point":
            return (self.config.fixed_point_tolerance / outputs.change.float().clamp(min=1e-12)).log()[:, None]
        # CODEPATH: a model without halting runs all segments
        if self.config.halting == "none":
            return None
        return self.halt_head(outputs.last_hidden_state[:, 0]).float()

    def count_work(self, inputs: Mapping[str, Any], measure: Measure = PARAMETERS) -> Work:
        """Count the work of a training step, given the arguments of `forward`."""
        segment, num_segments = self.model.count_work(inputs, measure), inputs.get("num_segments", 1)
        num_cells, head = inputs["input_ids"].numel(), measure.module(self.lm_head)
        # CODEPATH: the targets of Q-learning take one more segment
        num_targets = int(self.config.halting == "q_learning" and inputs.get("labels") is not None)
        halting = measure.module(self.halt_head) * len(inputs["input_ids"]) if hasattr(self, "halt_head") else 0
        work = segment + segment.without_gradient() * (num_segments - 1 + num_targets)
        return work + Work(head, head) * num_cells + Work(halting * (1 + num_targets), halting)

    def continue_targets(self, carry: Any, options: dict) -> torch.Tensor | None:
        """Compute the Q-learning targets `[B]` of continuing: the better value after one more segment.

        After the last segment it is the value of halting (2506.21734; neither a replay buffer nor a target network).
        """
        # CODEPATH: only Q-learning predicts the value of continuing
        if self.config.halting != "q_learning" or not self.training:
            return None
        with torch.no_grad():
            halt_logits: Any = self.read_halting(self.model(carry=carry, **options))
            halt, go_on = halt_logits.unbind(1)
            is_last = carry.steps >= self.config.max_segments
            return torch.where(is_last, halt, torch.maximum(halt, go_on)).sigmoid()


FAMILY = Family(
    name="puzzle",
    config=HierarchicalPuzzleConfig,
    # the Auto class of models that predict every position from all positions
    classes={"AutoModel": HierarchicalPuzzleModel, "AutoModelForMaskedLM": HierarchicalForPuzzle},
    describe=lambda config: f"{describe_cycles(config)}, {config.max_segments} segments",
)

__all__ = [
    "FAMILY",
    "HierarchicalCarry",
    "HierarchicalForPuzzle",
    "HierarchicalPuzzleModel",
    "HierarchicalPuzzleOutput",
]
