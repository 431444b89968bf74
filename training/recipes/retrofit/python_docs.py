"""Writes the text that the small healing recipe trains on and the text that it is measured on.

    python training/recipes/retrofit/python_docs.py outputs/python_docs

`docstrings.jsonl` holds the docstrings of Python's standard library, one object a module, and `answers.jsonl` the same
docstrings one by one, each as the answer to a question; `topics.txt` the language reference that `help()` shows. A
docstring that shares 13 words in a row with the reference is left out, so that nothing of what is measured is trained
on. All three differ a little between versions of Python.
"""

import ast
import json
import sys
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics


MIN_CHARACTERS = 80
SHARED_WORDS = 13
LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}
WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def main(folder: Path) -> None:
    """Write the files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    reference = "\n\n".join(topics[name] for name in sorted(topics))
    (folder / "topics.txt").write_text(reference, encoding="utf-8")
    held_out, seen = runs_of_words(reference), set()
    library = Path(sysconfig.get_paths()["stdlib"])
    with (
        open(folder / "docstrings.jsonl", "w", encoding="utf-8") as file,
        open(folder / "answers.jsonl", "w", encoding="utf-8") as answers,
    ):
        for path in sorted(library.rglob("*.py")):
            if LEFT_OUT.isdisjoint(path.relative_to(library).parts):
                found = docstrings(path)
                texts = [text for text in found if text not in seen and not runs_of_words(text) & held_out]
                seen.update(texts)
                if texts:
                    file.write(json.dumps({"text": "\n\n".join(texts)}) + "\n")
                for text in texts:
                    question = f"What is {found[text]} in {path.relative_to(library).as_posix()}?\n\n"
                    answers.write(json.dumps({"question": question, "answer": text}) + "\n")


def docstrings(path: Path) -> dict[str, str]:
    """Map the longer docstrings of a source file to the names they describe; none if it cannot be parsed."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return {}
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, WITH_DOCSTRING) else None
        if text and len(text) >= MIN_CHARACTERS:
            found.setdefault(text, getattr(node, "name", "the module"))
    return found


def runs_of_words(text: str) -> set[tuple[str, ...]]:
    """Return every run of `SHARED_WORDS` words, in lower case."""
    words = text.lower().split()
    return {tuple(words[start : start + SHARED_WORDS]) for start in range(len(words) - SHARED_WORDS + 1)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
