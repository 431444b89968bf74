"""`results.json`: the measurements of a model, and how to repeat them."""

import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..field_values import build, check_types, field_types
from ..files import fault_named, read_json, write_text
from .curves import LoopCurve


RESULTS_FILE = "results.json"


def package_versions() -> dict[str, str]:
    """Return the versions of Python, hf_loop and the libraries that results depend on."""
    versions = {"python": platform.python_version()}
    for name in ("hf-loop", "torch", "transformers", "datasets"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions


@dataclass
class Results:
    """Measurements of a model and the facts needed to repeat them, stored beside it as `results.json`.

    Args:
        curves (`list[LoopCurve]`): measured curves. Of each metric, the first one is the model in the folder and the
            others are comparisons.
        command (`str`, *optional*): the command that produced the model or the measurement.
        seed (`int`, *optional*): its seed.
        datasets (`list[str]`): names of the data used.
        base_model (`str`, *optional*): the pretrained checkpoint that the model came from.
        license (`str`, *optional*): the licence of the weights, as the Hub spells it.
        loop_sampling (`str`, *optional*): how the depth was chosen in training, in words.
        prompt (`str`, *optional*): an example prompt for the model card.
        notes (`list[str]`): further sentences for the model card.
        versions (`dict[str, str]`): package versions; by default those of the running process.

    Raises:
        ValueError: if a field has another type.
    """

    curves: list[LoopCurve] = field(default_factory=list)
    command: str | None = None
    seed: int | None = None
    datasets: list[str] = field(default_factory=list)
    base_model: str | None = None
    license: str | None = None
    loop_sampling: str | None = None
    prompt: str | None = None
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=package_versions)

    def __post_init__(self) -> None:
        check_types(vars(self), field_types(type(self)))
        if any(not isinstance(curve, LoopCurve) for curve in self.curves):
            raise ValueError("curves must hold LoopCurve objects")

    def curves_of(self, metric: str) -> list[LoopCurve]:
        """Return the curves of one metric, the model's own first."""
        return [curve for curve in self.curves if curve.metric == metric]

    def add_curve(self, curve: LoopCurve) -> None:
        """Add a curve, in place of an earlier one of the same metric and label."""
        for index, other in enumerate(self.curves):
            if (other.metric, other.label) == (curve.metric, curve.label):
                self.curves[index] = curve
                return
        self.curves.append(curve)

    def save(self, folder: str | Path) -> Path:
        """Write `folder/results.json`, whole or not at all, and return its path."""
        path = Path(folder) / RESULTS_FILE
        data = asdict(self) | {"curves": [curve.to_dict() for curve in self.curves]}
        write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "Results":
        """Read `folder/results.json`.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is not JSON, or a field is unknown or of another type; the message names the file.
        """
        path = Path(folder) / RESULTS_FILE
        data = read_json(path)
        with fault_named(path):
            data["curves"] = [LoopCurve.from_dict(curve) for curve in data.get("curves", [])]
            return build(cls, data, str(path))
