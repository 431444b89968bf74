"""Are two subroutines of a looped model in different weights, and does every loop use the same ones?

The method is that of "Break It Down: Evidence for Structural Compositionality in Neural Networks"
(https://huggingface.co/papers/2301.10884). For a task that needs two subroutines, a mask is trained on rows that need
only one of them, while the weights stay as they are. If the subroutines are modules, the subnetwork of A does A and
not B, and the network without it does B and not A. What is new here is the loop: a mask for every loop, how much they
overlap, and what happens when a subnetwork is ablated in one loop alone.

A mask could also find a subnetwork that solves the rows in weights that know nothing of the task. So each mask has its
controls: the same search in a network of random weights, and random masks of the same size.
"""

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ..evaluation.accuracy import accuracy_over_loops
from ..evaluation.scan import model_settings
from ..files import atomic_path, read_safetensors
from ..models.checks import check_positive_int
from .masks import LoopMasks, WeightMasks, inverted, map_masks, masked_weights, only_in, random_masks
from .modularity_overlap import chance_overlap, kept_share, loop_overlaps, overlap
from .modularity_results import SUBROUTINES, Accuracies, MaskPair, MaskRun, ModularityResults
from .modularity_training import MaskTraining, Rows, train_masks


RESULTS_FILE = "modularity.json"
SPLITS = ("train_a", "train_b", "test_a", "test_b")


def measure_modularity(
    model: Any,
    rows: Mapping[str, Rows],
    *,
    training: MaskTraining | None = None,
    seeds: Sequence[int] = (0,),
    ablation: Literal["zero", "random"] = "zero",
    outside: bool = False,
    batch_size: int = 256,
    folder: str | Path | None = None,
    label: str = "model",
    progress: bool = False,
) -> ModularityResults:
    """Train masks of two subroutines on a frozen model, and measure what subnetworks and ablated networks can do.

    For each seed and subroutine three masks are trained: one for all loops, one for each loop, and, as a control, one
    for all loops of a network with random weights.

    Args:
        model (`PreTrainedModel`): a causal language model with loops. It is not changed.
        rows (`Mapping[str, Sequence[Mapping]]`): the splits `"train_a"` and `"train_b"`, whose labels need one
            subroutine alone, and `"test_a"` and `"test_b"`, as [`accuracy_over_loops`] takes them. The last labelled
            token of a row is its answer.
        training (`MaskTraining`, *optional*): how masks are trained.
        seeds (`Sequence[int]`, *optional*, defaults to `(0,)`): seeds of the masks.
        ablation (`str`, *optional*, defaults to `"zero"`): what becomes of the weights of an ablated subnetwork:
            `"zero"`, or `"random"` for those of a new network.
        outside (`bool`, *optional*, defaults to `False`): whether layers outside of loops are masked too.
        batch_size (`int`, *optional*, defaults to 256): test rows in one pass.
        folder (`str` or `Path`, *optional*): where `modularity.json` goes, written after every mask, and the masks
            themselves. If it holds results of the same search already, the search goes on from them.
        label (`str`, *optional*, defaults to `"model"`): the name of the model in tables and figures.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

    Returns:
        `ModularityResults`: all that `folder` holds, or what was measured.

    Raises:
        ValueError: if a split is missing or has a row with nothing to score; if the model has no loops or no weights
            to mask; if an argument is not as described; if `folder` has results of another search.
    """
    training = training or MaskTraining()
    missing = [name for name in SPLITS if not len(rows.get(name, ()))]
    if missing:
        raise ValueError(f"rows must have the splits {', '.join(SPLITS)}, got none of {', '.join(missing)}")
    if ablation not in ("zero", "random"):
        raise ValueError(f"ablation must be 'zero' or 'random', got {ablation!r}")
    search = _Search(model, {name: list(rows[name]) for name in SPLITS}, training, ablation, outside, batch_size)
    settings = search.settings()
    path = None if folder is None else Path(folder) / RESULTS_FILE
    if path is not None and path.is_file():
        results = ModularityResults.load(path)
        results.check_settings(settings, path)
    else:
        results = search.begin(label, settings)
    done = {run.key for run in results.runs}
    kinds = (("trained", False), ("trained", True), ("random", False))
    wanted = [
        (network, subroutine, per_loop, seed)
        for seed in dict.fromkeys(seeds)
        for network, per_loop in kinds
        for subroutine in SUBROUTINES
    ]
    todo = [key for key in wanted if key not in done]
    steps = {name: training.num_steps(len(rows[f"train_{name}"])) for name in SUBROUTINES}
    shared = _read_masks(results.runs, path)
    with tqdm(total=sum(steps[key[1]] for key in todo), disable=not progress, desc="masks") as bar:
        for index, key in enumerate(todo):
            bar.set_postfix_str(f"mask {index + 1}/{len(todo)}: {_name_of(key)}")
            run, masks = search.run(*key, bar)
            results.runs.append(run)
            if key[:1] + key[2:3] == ("trained", False):
                # where those of an earlier run are read to
                shared[key] = map_masks(masks, lambda name, mask: mask.cpu())
                results.pairs = _pairs(shared)
            if path is not None:
                _write_masks(masks, path.parent / "masks" / f"{_name_of(key)}.safetensors")
                results.save(path)
    return results


class _Search:
    """Trains and measures the masks of one model."""

    def __init__(
        self,
        model: Any,
        rows: dict[str, Rows],
        training: MaskTraining,
        ablation: str,
        outside: bool,
        batch_size: int,
    ):
        self.model, self.rows, self.training = model, rows, training
        self.ablation, self.outside = ablation, outside
        self.batch_size = check_positive_int("batch_size", batch_size)

    def settings(self) -> dict[str, Any]:
        """Return what the numbers depend on, besides the kind and the seed of a mask."""
        digests = {name: _digest_rows(rows) for name, rows in self.rows.items()}
        own = {"ablation": self.ablation, "outside": self.outside}
        return {**model_settings(self.model), **digests, **asdict(self.training), **own}

    def begin(self, label: str, settings: dict[str, Any]) -> ModularityResults:
        """Measure the whole model."""
        curves = {name: self._curve(self.model, name) for name in SUBROUTINES}
        loops = sorted({call.loop for call in self.model.config.calls() if call.loop is not None})
        chance = {name: float(curve.guessing) for name, curve in curves.items()}
        accuracy = {name: _right(curve.values[0]) for name, curve in curves.items()}
        return ModularityResults(label, loops, chance, accuracy, settings)

    def run(self, network: Any, subroutine: Any, per_loop: bool, seed: int, bar: Any) -> tuple[MaskRun, LoopMasks]:
        """Train one mask and measure it."""
        model = self.model if network == "trained" else random_network(self.model, seed)
        scores = train_masks(
            model, self.rows[f"train_{subroutine}"], self.training, per_loop=per_loop, outside=self.outside, seed=seed,
            after_step=lambda loss: bar.update(),
        )  # fmt: skip
        masks = scores.hard()
        drawn = random_masks(masks, seed)
        replacements: WeightMasks | None = None
        if self.ablation == "random":
            # another one than the random network of the same seed
            weights = random_network(model, -1 - seed).named_parameters()
            replacements = {name: weight.detach() for name, weight in weights}
        loops = [loop for loop in masks if loop is not None]
        is_trained = network == "trained"
        ablated_in_loop = [
            self.accuracies(model, only_in(inverted(masks), [loop]), replacements) for loop in loops if is_trained
        ]
        loop_overlap, chance = loop_overlaps(masks) if per_loop else ([], [])
        run = MaskRun(
            network=network,
            subroutine=subroutine,
            per_loop=per_loop,
            seed=seed,
            kept=kept_share({loop: weights for loop, weights in masks.items() if weights}),
            subnetwork=self.accuracies(model, masks),
            ablated=self.accuracies(model, inverted(masks), replacements),
            random_subnetwork=self.accuracies(model, drawn),
            random_ablated=self.accuracies(model, inverted(drawn), replacements),
            ablated_in_loop=ablated_in_loop,
            loop_overlap=loop_overlap,
            chance_overlap=chance,
        )
        return run, masks

    def accuracies(self, model: Any, masks: LoopMasks, replacements: WeightMasks | None = None) -> Accuracies:
        """Return the accuracy on the tests of both subroutines with masked weights."""
        with masked_weights(model, masks, replacements):
            return {name: _right(self._curve(model, name).values[0]) for name in SUBROUTINES}

    def _curve(self, model: Any, subroutine: str) -> Any:
        loops = [getattr(model.config, "num_loops", 1)]
        return accuracy_over_loops(model, self.rows[f"test_{subroutine}"], loops, batch_size=self.batch_size)


def random_network(model: Any, seed: int) -> Any:
    """Make a model of the same configuration with new random weights, on the same device and of the same type."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = type(model)(copy.deepcopy(model.config))
    return network.to(device=model.device, dtype=model.dtype).eval()


def _right(accuracy: float) -> float:
    """Return the accuracy, 0 of a network whose logits are no numbers."""
    return 0.0 if math.isnan(accuracy) else accuracy


def _digest_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([[int(value) for value in row[name]] for name in ("input_ids", "labels")]).encode())
    return digest.hexdigest()[:16]


def _name_of(key: tuple[str, str, bool, int]) -> str:
    network, subroutine, per_loop, seed = key
    return f"{network}_{subroutine}_{'per_loop' if per_loop else 'shared'}_{seed}"


def _pairs(masks: Mapping[tuple[str, str, bool, int], LoopMasks]) -> list[MaskPair]:
    """Compare masks of one subroutine under two seeds, and those of the two subroutines under one."""
    pairs = []
    for (first, masks_1), (second, masks_2) in itertools.combinations(masks.items(), 2):
        if (first[1] == second[1]) != (first[3] == second[3]):
            names = [f"{key[1]}, seed {key[3]}" for key in (first, second)]
            weights = [next(filter(None, loops.values())) for loops in (masks_1, masks_2)]
            pairs.append(MaskPair(*names, overlap(*weights), chance_overlap(*weights)))
    return pairs


def _write_masks(masks: LoopMasks, path: Path) -> None:
    """Write hard masks, once for loops that share them: the names are `LOOP:WEIGHT`, of the first such loop."""
    tensors, seen = {}, set()
    for loop, weights in masks.items():
        if id(weights) not in seen:
            seen.add(id(weights))
            tensors |= {f"{loop}:{name}": mask.bool().cpu() for name, mask in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def _read_masks(runs: Iterable[MaskRun], path: Path | None) -> dict[tuple[str, str, bool, int], LoopMasks]:
    """Read the masks that all loops of the trained network share."""
    masks: dict[tuple[str, str, bool, int], LoopMasks] = {}
    for run in runs:
        if path is not None and run.network == "trained" and not run.per_loop:
            tensors, _ = read_safetensors(path.parent / "masks" / f"{_name_of(run.key)}.safetensors")
            masks[run.key] = {0: {name.partition(":")[2]: mask.float() for name, mask in tensors.items()}}
    return masks


__all__ = ["RESULTS_FILE", "SPLITS", "measure_modularity", "random_network"]
