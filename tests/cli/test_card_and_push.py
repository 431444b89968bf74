"""What `card` and `push` refuse; the card's text is tested in tests/evaluation, an upload in tests/test_hub.py."""

import pytest
from huggingface_hub import ModelCard


def test_card_writes_the_readme(hf_loop, looped_folder):
    code, out, err = hf_loop(
        "card", looped_folder, "--repo-id", "me/game", "--license", "mit", "--base-model", "me/base"
    )
    assert code == 0, err
    assert out.strip() == str(looped_folder / "README.md")
    card = ModelCard.load(looped_folder / "README.md")
    assert (card.data.license, card.data.base_model) == ("mit", "me/base")
    assert '.from_pretrained("me/game")' in card.content


def test_card_replaces_only_its_own(hf_loop, looped_folder):
    assert hf_loop("card", looped_folder)[0] == 0
    assert hf_loop("card", looped_folder, "--license", "mit")[0] == 0
    readme = looped_folder / "README.md"
    readme.write_text("# Mine\n")
    code, _, err = hf_loop("card", looped_folder)
    assert code == 2
    assert "was not written by hf-loop" in err
    assert readme.read_text() == "# Mine\n"
    assert hf_loop("card", looped_folder, "--overwrite")[0] == 0
    assert readme.read_text() != "# Mine\n"


def test_card_needs_a_model_of_a_family(hf_loop, plain_folder, tmp_path):
    assert "there is no folder" in hf_loop("card", tmp_path / "missing")[2]
    assert "no config.json" in hf_loop("card", tmp_path)[2]
    code, _, err = hf_loop("card", plain_folder)
    assert code == 2
    assert "holds a model of type 'llama', which is of no family of hf_loop" in err
    assert not (plain_folder / "README.md").exists()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a request was made")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)


def test_push_checks_the_folder_before_any_request(hf_loop, looped_folder, no_network):
    code, _, err = hf_loop("push", looped_folder, "me/game")
    assert code == 2
    assert "has no README.md; write it with `hf-loop card`" in err
    (looped_folder / "README.md").write_text("# Mine\n")
    weights = looped_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    code, _, err = hf_loop("push", looped_folder, "me/game")
    assert (code, err.count("\n")) == (2, 1)
    assert "model.safetensors is truncated" in err
    weights.unlink()
    assert "holds no weights" in hf_loop("push", looped_folder, "me/game")[2]
    (looped_folder / "config.json").unlink()
    assert "not a model folder" in hf_loop("push", looped_folder, "me/game")[2]
