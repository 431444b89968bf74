"""The documents of this repository: their code blocks, links and headings."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CARDS = sorted((ROOT / "model_cards").glob("**/README.md"))
# what explains the library; the cards are results
GUIDES = [README, *sorted((ROOT / "hf_loop").glob("**/README.md")), *sorted((ROOT / "training").glob("**/*.md"))]
DOCUMENTS = [*GUIDES, *CARDS]
# whose first lines are commands
RECIPES = sorted((ROOT / "training" / "recipes").glob("**/*.yaml"))
SCRIPTS = sorted((ROOT / "training").glob("**/*.py"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^\|([^|\n]*)\|.*\n\|[-:| ]+\|\n((?:\|.*\n)*)", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document.

    Args:
        language (`str`): what stands after the fence.
        line (`int`): the line in the document of its first line.
        text (`str`): what is inside.
    """

    language: str
    line: int
    text: str


def name_of(document: Path) -> str:
    """The path of a document in the repository."""
    return document.relative_to(ROOT).as_posix()


def blocks(document: Path, language: str) -> list[Block]:
    """The fenced blocks of a language, in order; those without one have the language `""`."""
    text = document.read_text()
    found = [Block(match[1], text.count("\n", 0, match.start(2)) + 1, match[2]) for match in BLOCK.finditer(text)]
    return [block for block in found if block.language == language]


def commands(path: Path) -> list[list[str]]:
    """The command lines of a document, of a recipe's comments or of a script's docstring, as words."""
    text = path.read_text()
    if path.suffix == ".md":
        found = [block.text for language in ("bash", "") for block in blocks(path, language)]
        lines = "".join(found).replace("\\\n", " ").splitlines()
        lines += [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]
    else:
        lines = [line.lstrip("# ") for line in re.sub(r"\\\n#? *", " ", text).splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(("hf-loop ", "python training/"))]


def script(document: Path) -> str:
    """The Python examples of a document as one program, every line where it stands in the document."""
    lines = [""] * len(document.read_text().splitlines())
    for block in blocks(document, "python"):
        for offset, line in enumerate(block.text.splitlines()):
            lines[block.line - 1 + offset] = line
    return "\n".join(lines)


def tables(document: Path) -> dict[str, set[str]]:
    """The names in the first column of each table, by the column's heading."""
    found: dict[str, set[str]] = {}
    for heading, rows in TABLE.findall(document.read_text()):
        names = {name for row in rows.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
        found.setdefault(heading.strip(), set()).update(names)
    return found


def links(document: Path) -> list[str]:
    """The targets of the links of a document, outside its code."""
    return LINK.findall(BLOCK.sub("", document.read_text()))


def anchors(document: Path) -> set[str]:
    """The names by which headings are linked, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?)\s*$", BLOCK.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
