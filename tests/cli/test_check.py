"""`hf-loop check`: what it says of an architecture that opens, and of one that does not."""

from hf_loop.models.backbone import SUPPORTED_BACKBONES


def test_an_architecture_that_opens(hf_loop, plain_folder):
    code, out, err = hf_loop("check", plain_folder, "--weights")
    assert code == 0, err
    assert "model type    llama, tested by hf_loop" in out
    assert "twin          3 layers" in out
    assert "weights       one loop over the pretrained layers is the model, bit for bit" in out
    for family in ("looped", "feedback", "sleep"):
        assert f"{family:<14}yes" in out
    assert "hierarchical  no: `backbone_config.num_hidden_layers` must be even" in out


def test_what_a_family_refuses_is_said(hf_loop):
    code, out, _ = hf_loop("check", "xglm")
    assert code == 0
    assert f"{'looped':<14}yes" in out
    assert f"{'sleep':<14}no: `backbone_config.model_type` 'xglm' cannot sleep: it adds positions" in out


def test_the_text_part_of_a_composite_type_is_checked(hf_loop):
    code, out, err = hf_loop("check", "gemma3")
    assert code == 0, err
    assert "model type    gemma3_text, tested by hf_loop" in out


def test_an_architecture_that_does_not_open(hf_loop, monkeypatch):
    code, out, err = hf_loop("check", "openai-gpt")
    assert (code, out) == (2, "")
    assert err.strip().splitlines()[-1] == (
        "hf-loop: error: openai-gpt cannot be opened: it has no cache and no final norm"
    )
    monkeypatch.delitem(SUPPORTED_BACKBONES, "minicpm3")
    code, _, err = hf_loop("check", "minicpm3")
    assert code == 2
    assert "hf-loop: error: minicpm3 cannot be opened: one loop differs from the base model by up to" in err


def test_a_looped_model_and_a_wrong_name_are_refused(hf_loop, looped_folder):
    code, _, err = hf_loop("check", looped_folder)
    assert code == 2
    assert "is a looped model already" in err
    code, _, err = hf_loop("check", "./nowhere")
    assert (code, err.strip()) == (2, "hf-loop: error: there is no folder ./nowhere")
