"""What a model's name stands for, and what is nearest where there is nothing of that name."""

import socket

import pytest

from hf_loop.paths import find_model, nearest_path, no_such


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my_model", "runs/first", "runs/second"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "my_model" / "text.txt").touch()
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    """Fail as a machine without a network does, and count the attempts."""
    attempts = []

    def refuse(host, *arguments, **options):
        attempts.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


def test_a_folder_is_found_however_it_is_written(models):
    for name in ("my_model", "./my_model", "my_model/", models / "my_model", "runs/first"):
        assert find_model(name).resolve() in (models / "my_model", models / "runs" / "first")


@pytest.mark.parametrize(
    "name", ["./my_modle", "my_modle/", "runs/frist/", "a/b/c", "my modle", "~/x", "-x", "", "a\0b"]
)
def test_what_can_only_be_a_folder_is_refused_without_asking_the_hub(models, no_network, name):
    with pytest.raises(OSError, match="there is no folder"):
        find_model(name)
    assert no_network == []


@pytest.mark.parametrize(
    ("name", "nearest"), [("my_modle", "my_model"), ("runs/secnd", "runs/second"), ("nothing-alike", None)]
)
def test_what_may_be_a_repository_is_asked_for_once(models, no_network, name, nearest):
    with pytest.raises(OSError, match=f"there is no folder {name}") as error:
        find_model(name)
    assert ("did you mean" in str(error.value)) == (nearest is not None)
    assert nearest is None or f"did you mean {nearest}?" in str(error.value)
    assert "the Hub cannot be asked" in str(error.value)
    # the client asks for something of its own once in a process
    assert len(no_network) <= 2


def test_a_file_is_not_taken_for_a_folder(models):
    with pytest.raises(OSError, match=r"my_model/text\.txt is a file; give the folder of a model"):
        find_model("my_model/text.txt")


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("my_modle/text.txt", "my_model/text.txt"),
        ("my_model/texxt.txt", "my_model/text.txt"),
        ("my_modle/other.txt", None),
        ("nowhere/at/all", None),
        ("/no/such/folder", None),
    ],
)
def test_the_nearest_path_differs_in_one_name(models, path, nearest):
    found = nearest_path(path)
    assert (None if found is None else str(found)) == nearest
    assert no_such("file", path) == f"there is no file {path}" + (f"; did you mean {nearest}?" if nearest else "")


def test_what_is_of_the_other_kind_is_not_called_missing(models):
    assert no_such("folder", "my_model/text.txt") == "my_model/text.txt is a file, give a folder"
    assert no_such("file", "my_model") == "my_model is a folder, give a file"
