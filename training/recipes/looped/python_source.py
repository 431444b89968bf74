"""Writes the text and the tokenizer of the recipes `python_source.yaml` and `python_source_16.yaml`.

    python training/recipes/looped/python_source.py outputs/python_source_text

`train.jsonl` holds the source files of Python's standard library, code and docstrings, one object a file;
`held_out.txt` about every twentieth file, chosen by a hash of its path, without the paragraphs that are also in a file
of the training text; `tokenizer` a byte-level BPE of 10,240 tokens, made from the training text. The same version of
Python gives the same files.
"""

import hashlib
import json
import sys
import sysconfig
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


VOCAB_SIZE = 10_240
HELD_OUT = 20  # one file in so many
END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"
LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo"}
LEFT_OUT |= {"encodings", "pydoc_data"}  # tables


def main(folder: Path) -> None:
    """Write the files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = split(source_files(Path(sysconfig.get_paths()["stdlib"])))
    with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in train)
    (folder / "held_out.txt").write_text("\n\n".join(held_out), encoding="utf-8")
    train_tokenizer(train).save_pretrained(folder / "tokenizer")


def source_files(library: Path) -> dict[str, str]:
    """Map the path of every source file inside `library` to its text; of equal files, the first one only."""
    files: dict[str, str] = {}
    seen: set[str] = set()
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if not LEFT_OUT.isdisjoint(name.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:
            continue
        if text and text not in seen:
            seen.add(text)
            files[name.as_posix()] = text
    return files


def split(files: dict[str, str]) -> tuple[list[str], list[str]]:
    """Split texts into those to train on, in the order of their paths, and those held out, in the order of the hash.

    Held-out texts lose every paragraph that a training text has.
    """
    numbers = {name: int(hashlib.sha256(name.encode()).hexdigest(), 16) for name in files}
    train = [text for name, text in files.items() if numbers[name] % HELD_OUT]
    trained_on = {paragraph.strip() for text in train for paragraph in text.split("\n\n")}
    held_out = []
    for name in sorted((name for name in files if numbers[name] % HELD_OUT == 0), key=numbers.__getitem__):
        paragraphs = [part for part in files[name].split("\n\n") if part.strip() not in trained_on]
        if paragraphs:
            held_out.append("\n\n".join(paragraphs))
    return train, held_out


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=PADDING
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
