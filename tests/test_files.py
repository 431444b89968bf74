"""Files written whole or not at all, with the mode that the umask gives; damaged ones are named."""

import os
import signal
import stat
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_loop.evaluation.scan import model_settings
from hf_loop.files import (
    atomic_path,
    digest_weights,
    read_json,
    read_safetensors,
    read_text,
    tensor_shapes,
    write_text,
)
from hf_loop.models.memory_files import MemoryMixin
from hf_loop.output_folders import whole_folder

from .trainer.tiny import tiny_model


KILLED = """
import os, signal, sys
from hf_loop.evaluation.scan import model_settings
from hf_loop.files import atomic_path

with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_files_have_the_mode_that_the_umask_gives(tmp_path, umask):
    path = tmp_path / "weights.safetensors"
    with atomic_path(path) as temporary:
        save_file({"weight": torch.ones(2)}, temporary)
    assert mode_of(path) == 0o666 & ~umask
    # over a private file too
    path.chmod(0o600)
    write_text(path, "text")
    assert mode_of(path) == 0o666 & ~umask


def test_folders_of_models_have_the_mode_that_the_umask_gives(tmp_path, umask):
    with whole_folder(tmp_path / "model") as folder:
        (folder / "code").mkdir()
        for path in (folder / "model.safetensors", folder / "code" / "more.safetensors"):
            save_file({"weight": torch.ones(2)}, path)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert [mode_of(path) for path in files] == [0o666 & ~umask] * 2
    assert mode_of(tmp_path / "model") == mode_of(tmp_path / "model" / "code") == 0o777 & ~umask


def test_saved_models_have_the_mode_that_the_umask_gives(tmp_path, umask):
    for _ in range(2):
        tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        assert {mode_of(path) for path in tmp_path.iterdir() if path.is_file()} == {0o666 & ~umask}


def test_a_folder_that_is_there_stays_the_same_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with whole_folder(Path()) as folder:
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text(name)
        assert not Path("config.json").exists()
    assert sorted(os.listdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("is_there", [False, True])
def test_an_error_leaves_no_folder_and_nothing_in_it(tmp_path, is_there):
    output_dir = tmp_path / "model"
    if is_there:
        output_dir.mkdir()
    with pytest.raises(OSError, match="disk full"), whole_folder(output_dir) as folder:
        (folder / "config.json").write_text("half")
        raise OSError("disk full")
    assert [path.name for path in tmp_path.rglob("*")] == ["model"] * is_there


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path, monkeypatch):
    # also by a name alone, in the folder where the process is
    monkeypatch.chdir(tmp_path)
    write_text("file.txt", "old")
    with atomic_path("file.txt") as temporary, atomic_path("file.txt") as other:
        temporary.write_text("new")
        other.write_text("newer")
        assert (tmp_path / "file.txt").read_text() == "old"
        assert temporary.parent.resolve() == tmp_path.resolve()
    assert (tmp_path / "file.txt").read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("fails", ["in the block", "in the rename"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fails, error):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail(*arguments):
        raise error

    if fails == "in the rename":
        monkeypatch.setattr("os.replace", fail)
    with pytest.raises(type(error)), atomic_path(path) as temporary:
        temporary.write_text("half")
        if fails == "in the block":
            fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.safetensors"
    write_text(path, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    # what it leaves is not taken for weights
    assert list(tmp_path.glob("*.safetensors")) == [path]


def test_a_folder_that_does_not_exist_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "nowhere" / "file.txt", "text")
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_read_with_their_metadata(tmp_path):
    path = tmp_path / "file.safetensors"
    save_file({"a": torch.arange(6).view(2, 3), "b": torch.ones(4)}, path, metadata={"step": "3"})
    tensors, metadata = read_safetensors(path)
    assert tensors["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and metadata == {"step": "3"}
    assert tensor_shapes(path) == {"a": (2, 3), "b": (4,)}


@pytest.mark.parametrize("read", [read_safetensors, tensor_shapes])
@pytest.mark.parametrize("size", [0, 5, -1])
def test_a_damaged_file_is_named(tmp_path, read, size):
    path = tmp_path / "file.safetensors"
    save_file({"a": torch.ones(6)}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"file\.safetensors is truncated or damaged"):
        read(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_in_the_encoding_of_its_mark_and_without_the_mark(tmp_path, encoding):
    path = tmp_path / "text.txt"
    path.write_bytes("größer 日本\r\nline".encode(encoding))
    assert read_text(path) == "größer 日本\nline"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", "text.txt is not UTF-8 text: .* position 3"),
        ("text".encode("utf-16-le"), "text.txt is not UTF-8 text: it begins with"),
        (b"\xff\xfeabc", "text.txt is not UTF-16 text"),
        (b"\x89PNG\r\n\x1a\n", "text.txt is not UTF-8 text"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, content, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text(path)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", "3", '"a"', "[" * 100_000])
def test_what_is_no_json_object_is_named(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"file\.json (is not valid JSON|must hold a JSON object)") as error:
        read_json(path)
    assert len(str(error.value)) < 300
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}


class Fixed(MemoryMixin, nn.Module):
    """A model of which everything is known that enters a digest."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.wide = nn.Parameter(torch.arange(1000.0).view(4, 250))
        self.bias = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        fields = {"block_size": 4, "dtype": "float32", "backbone_config": {"hidden_size": 8, "use_cache": True}}
        self.config = SimpleNamespace(to_dict=lambda: fields)


def test_memories_and_scans_that_were_saved_before_are_recognised():
    # as they were before memories and scans shared their code
    assert Fixed().fingerprint() == "6ec0bef4f697463353d89e28ec1fa807"
    settings = model_settings(cast(Any, Fixed()))
    assert settings == {"weights": "5f34a3bad0091480", "config": "e7bf540aac5601a7", "dtype": "float32"}


def test_a_digest_depends_on_what_is_sampled_alone():
    def digest(model):
        fed = sha256()
        digest_weights(fed, model, model.named_parameters(), lambda name, _: name, lambda weight: weight.flatten()[:2])
        return fed.hexdigest()

    model = nn.Linear(4, 4, bias=False)
    before = digest(model)
    model.weight.data[1] += 1
    assert digest(model) == before
    model.weight.data[0] += 1
    assert digest(model) != before
