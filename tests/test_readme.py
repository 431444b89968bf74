"""The README says what is so: its table of decoders is where it points, and its commands exist."""

import re
from pathlib import Path

from typer.testing import CliRunner


README = Path(__file__).parents[1] / "README.md"


def test_the_table_of_decoders_is_linked():
    assert "(hf_loop/models/README.md#decoders)" in README.read_text()
    assert "## Decoders" in (README.parent / "hf_loop" / "models" / "README.md").read_text()


def test_every_command_of_the_readme_exists():
    from hf_loop.cli.main import app

    commands = set(re.findall(r"hf-loop ([a-z]+)", README.read_text()))
    assert commands >= {"quickstart", "train", "generate", "sweep", "card", "push"}
    for command in commands:
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0, (command, result.output)
