"""Published checkpoints are converted from a repository, of which only what is needed is downloaded."""

import json

import torch

from ..hub_processes import run_python
from ..hub_server import HubServer
from .converters import test_hrm_puzzle as hrm
from .converters import test_huginn as huginn
from .converters import test_parcae as parcae
from .converters.recurrent_reference import write_checkpoint


def test_a_repository_is_converted(tmp_path):
    write_checkpoint(tmp_path / "huginn", huginn.CONFIG, huginn.make_tensors(huginn.CONFIG))
    (tmp_path / "huginn" / "original.bin").write_bytes(b"not needed")
    # as Parcae is published: a pickled state
    (tmp_path / "parcae").mkdir()
    (tmp_path / "parcae" / "config.json").write_text(json.dumps(parcae.CONFIG))
    torch.save(parcae.make_tensors(parcae.CONFIG), tmp_path / "parcae" / "pytorch_model.bin")
    # as HRM and TRM are published: a pickled state without a suffix
    hrm.write(tmp_path / "hrm", hrm.HRM, hrm.make_tensors(hrm.HRM))
    (tmp_path / "hrm" / "hrm_act_v1.py").write_text("not needed")
    with HubServer() as hub:
        run_python(
            f"""
            from pathlib import Path
            import torch
            from huggingface_hub import HfApi, scan_cache_dir
            from hf_loop import convert

            for name, loops in (("huginn", 4), ("parcae", 8), ("hrm", 2)):
                folder = Path({str(tmp_path)!r}) / name
                HfApi().create_repo(f"me/{{name}}")
                HfApi().upload_folder(repo_id=f"me/{{name}}", folder_path=folder)
                ids = torch.tensor([[5, 6, 7]])
                from_hub = convert(f"me/{{name}}")
                assert from_hub.name_or_path == ""
                assert from_hub.config.num_loops == loops
                torch.testing.assert_close(from_hub(ids).logits, convert(folder)(ids).logits)
            revisions = [revision for repo in scan_cache_dir().repos for revision in repo.revisions]
            files = {{file.file_name for revision in revisions for file in revision.files}}
            needed = {{"config.json", "model.safetensors", "pytorch_model.bin", "all_config.yaml", "checkpoint"}}
            assert files == needed, files
            try:
                convert("me/nothing")
            except OSError as error:
                assert "me/nothing" in str(error)
            else:
                raise SystemExit("a repository that does not exist was converted")
            """,
            hub,
            tmp_path,
        )
