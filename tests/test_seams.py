"""Only the files of `SEAMS` name a private part of another library."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

import hf_loop


PACKAGE = Path(hf_loop.__file__).parent
SEAMS = [
    PACKAGE / name
    for name in (
        "models/transformers_seams.py",
        "models/module_seams.py",
        "models/compile_seams.py",
        "models/decoding_seams.py",
        "trainer/trainer_hooks.py",
    )
]

# what subclasses are meant to set or override, each with what it says
HOOKS = {
    "_can_compile_fullgraph": "PreTrainedModel: whether a fixed cache compiles into one graph",
    "_can_record_outputs": "PreTrainedModel: what `output_hidden_states` and the like record",
    "_fsdp_plan": "PreTrainedModel: how FSDP shards each module",
    "_init_weights": "PreTrainedModel: how a module starts",
    "_is_stateful": "GenerationMixin: whether a cache cannot be taken back, so that assistants are refused",
    "_layer_type": "CacheLayerMixin: the layer type under which `DynamicCache(config=...)` makes a cache layer",
    "_no_split_modules": "PreTrainedModel: modules that stay on one device",
    "_skip_keys_device_placement": "PreTrainedModel: arguments that device hooks leave where they are",
    "_supports_attention_backend": "PreTrainedModel: whether attention functions can be registered from outside",
    "_supports_flash_attn": "PreTrainedModel",
    "_supports_flex_attn": "PreTrainedModel",
    "_supports_sdpa": "PreTrainedModel",
    "_tied_weights_keys": "PreTrainedModel: which weights are shared",
    "_tp_plan": "PreTrainedModel: how tensor parallelism splits each module",
}
# public parts of the standard library whose names begin with an underscore
STANDARD = {"_asdict", "_fields", "_replace"}


def sources() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path not in SEAMS]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


class Names(ast.NodeVisitor):
    """Private names that a file defines, and those that it reads from something else."""

    def __init__(self):
        self.defined: set[str] = set()
        self.read: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.defined.add(node.name)
        self.generic_visit(node)

    visit_ClassDef = visit_FunctionDef

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.defined.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        is_own = isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"
        (self.defined if is_own else self.read).add(node.attr)
        self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self.read.add(alias.name)

    def visit_Call(self, node: ast.Call) -> None:
        # getattr(module, "_name") and the like
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr", "hasattr", "delattr"):
            self.read |= {argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant)}
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        # module.__dict__["_name"]
        is_dict = isinstance(node.value, ast.Attribute) and node.value.attr == "__dict__"
        if is_dict and isinstance(node.slice, ast.Constant):
            self.read.add(str(node.slice.value))
        self.generic_visit(node)


def test_no_private_name_of_another_library_is_read_outside_of_the_seams():
    files = {path: Names() for path in sources()}
    for path, names in files.items():
        names.visit(ast.parse(path.read_text()))
    own = set().union(*(names.defined for names in files.values()))
    foreign = {
        (str(path.relative_to(PACKAGE)), name)
        for path, names in files.items()
        for name in names.read
        if is_private(name) and name not in own | set(HOOKS) | STANDARD
    }
    assert not foreign


def test_no_private_method_of_another_library_is_overridden_outside_of_the_seams():
    overridden = set()
    for module_info in pkgutil.walk_packages(hf_loop.__path__, "hf_loop."):
        module = importlib.import_module(module_info.name)
        if Path(str(module.__file__)) in SEAMS:
            continue
        # other libraries leave names of their own on a class, which its source does not have
        names = Names()
        names.visit(ast.parse(inspect.getsource(module)))
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == module.__name__:
                others = [base for base in cls.__mro__[1:] if not base.__module__.startswith("hf_loop")]
                overridden |= {
                    (cls.__name__, name)
                    for name in vars(cls).keys() & names.defined - HOOKS.keys()
                    if is_private(name) and any(name in vars(base) for base in others)
                }
    assert not overridden


def test_every_hook_is_used_and_exists():
    text = "\n".join(path.read_text() for path in sources())
    known = set().union(
        *(vars(base) for cls in (PreTrainedModel, GenerationMixin, CacheLayerMixin) for base in cls.__mro__)
    )
    for hook in HOOKS:
        assert hook in text, f"{hook} is not used any more: take it off the list"
        assert hook in known, f"{hook} is no hook of this release"
