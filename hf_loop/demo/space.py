"""The files of a Space: the page of a model, the model, and the code of hf_loop, which is in no package index.

A Space installs what `requirements.txt` names before it has the other files, so that a wheel among them would come too
late; `app.py` finds the package beside itself.
"""

import importlib.metadata
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitOperationAdd, ModelCard, SpaceCardData

from ..evaluation.card_template import CARD_FILE
from ..published_files import published_files


DISTRIBUTION = "hf-loop"
PACKAGE = Path(__file__).parents[1]
# folders of the Space
CODE_FOLDER, MODEL_FOLDER = "hf_loop", "model"
REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+")
APP = """\
\"\"\"The page of a model, see README.md.\"\"\"

from pathlib import Path

from hf_loop.cli.demo import build_page
from hf_loop.demo.page import serve


page = build_page(str(Path(__file__).with_name("{model}")), {name!r})
serve(page)
page.block_thread()
"""
README = """\
---
{header}
---

# {name}, loop by loop

A page to see a model compute: what it would answer after every loop or segment, where tokens exit, and what it keeps
of a text. The model is in [`{model}`]({model}), with [its card]({model}/README.md); the page and the code that runs it
are [`{code}`]({code}), under the licence Apache-2.0. On your own machine:

```bash
pip install -r requirements.txt && python app.py
```
"""


def space_files(folder: Path, repo_id: str) -> list[CommitOperationAdd]:
    """Return the files of the Space of a model.

    Args:
        folder (`Path`): the model folder, with its card.
        repo_id (`str`): the Space, NAME or OWNER/NAME.

    Raises:
        ValueError: if a package that the page needs is not installed here, so that its version is not known.
    """
    name = repo_id.rpartition("/")[2]
    versions = package_versions()
    card = ModelCard.load(folder / CARD_FILE)
    header = SpaceCardData(
        title=name,
        sdk="gradio",
        sdk_version=versions["gradio"],
        # of a Space that names none it is an older one than hf_loop needs
        python_version=".".join(platform.python_version_tuple()[:2]),
        app_file="app.py",
        license=card.data.license,
        tags=["hf_loop"],
    )
    texts = {
        "app.py": APP.format(name=name, model=MODEL_FOLDER),
        "requirements.txt": "".join(f"{package}=={version}\n" for package, version in versions.items()),
        "README.md": README.format(header=header.to_yaml(), name=name, model=MODEL_FOLDER, code=CODE_FOLDER),
        **dict(_license()),
    }
    files = {f"{MODEL_FOLDER}/{path}": folder / path for path in published_files(folder)}
    files |= {f"{CODE_FOLDER}/{path.relative_to(PACKAGE).as_posix()}": path for path in sorted(PACKAGE.rglob("*.py"))}
    operations = [CommitOperationAdd(path, text.encode()) for path, text in texts.items()]
    return operations + [CommitOperationAdd(path, str(source)) for path, source in files.items()]


def package_versions() -> dict[str, str]:
    """Return the packages that the page needs, each at the version that is installed here.

    Raises:
        ValueError: if one is not installed.
    """
    try:
        required = importlib.metadata.requires(DISTRIBUTION) or []
        # requirements of extras name the extra
        names = [found[0] for line in required if ";" not in line and (found := REQUIREMENT.match(line))]
        # without the label of a build, such as +cpu, which package indices do not have
        return {name: importlib.metadata.version(name).partition("+")[0] for name in [*names, "gradio"]}
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed, so that a Space cannot name its version: `pip install 'hf-loop[demo]'`"
        ) from error


def _license() -> Iterator[tuple[str, str]]:
    text = importlib.metadata.distribution(DISTRIBUTION).read_text("licenses/LICENSE")
    if text is not None:
        yield f"{CODE_FOLDER}/LICENSE", text


__all__ = ["CODE_FOLDER", "MODEL_FOLDER", "package_versions", "space_files"]
