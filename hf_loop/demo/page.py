"""What all pages share: gradio, the head of the page, and how it is served."""

import importlib
from dataclasses import dataclass
from typing import Any

from .style import CSS


# how often a page is asked whether it is there
TRIES = 5
# calls wait for each other: the lens watches the layers of the model, and two calls would see each other's
MODEL_QUEUE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}


def import_gradio() -> Any:
    """Import gradio.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise ValueError(
            f"gradio cannot be imported ({error}); install it with `pip install 'hf-loop[demo]'`"
        ) from error


@dataclass
class Page:
    """What stands on a page besides its controls.

    Args:
        name (`str`): the model's name.
        schedule (`str`): how it runs, in words.
        example (`str`): the text that the page opens with.
        new_tokens (`int`, *optional*): length of a continuation by the model's own settings.
    """

    name: str
    schedule: str
    example: str = ""
    new_tokens: int | None = None

    def blocks(self) -> Any:
        """Begin the page, with its head."""
        gr = import_gradio()
        blocks = gr.Blocks(title=f"{self.name}, loop by loop", analytics_enabled=False, fill_width=True)
        with blocks:
            gr.Markdown(f"## {self.name}\n{self.schedule}", elem_id="head")
        return blocks


def check_length(name: str, text: str, limit: int) -> None:
    """Refuse a text that is too long: the limit of a field holds in the browser alone, and pages have an API.

    Raises:
        ValueError: names the limit and the length.
    """
    if len(text) > limit:
        raise ValueError(f"{name} must have at most {limit} characters, got {len(text)}")


def serve(blocks: Any, host: str | None = None, port: int | None = None) -> str:
    """Serve a page from a thread of its own, without any request to other machines.

    Args:
        blocks (`gradio.Blocks`): the page.
        host (`str`, *optional*): the address to listen at, by default gradio's: that of this machine alone, or what a
            Space says.
        port (`int`, *optional*): the port, by default the first that is free from 7860 on.

    Returns:
        `str`: the address of the page. `blocks.block_thread()` waits until Ctrl-C closes it.

    Raises:
        OSError: if the port is taken, or `host` is no address of this machine.
        ValueError: if the page does not answer.
    """
    themes = import_gradio().themes
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = themes.Default(primary_hue=themes.colors.blue, **fonts)
    where: dict[str, Any] = {"server_name": host, "server_port": port, "prevent_thread_lock": True}
    options: dict[str, Any] = {"share": False, "ssr_mode": False, "footer_links": [], "pwa": False, "quiet": True}
    tries = 0
    while True:
        try:
            return str(blocks.launch(css=CSS, theme=theme, **where, **options)[1])
        except OSError as error:
            # gradio names the settings of its own
            ports = "the ports from 7860 on are" if port is None else f"port {port} is"
            raise OSError(f"{ports} taken, or {host or 'its address'} is no address of this machine") from error
        except ValueError as error:
            # gradio gives a page three seconds to answer, and then advises to share it with the world
            tries += 1
            if "localhost" not in str(error):
                raise
            if tries == TRIES:
                blocks.close()
                raise ValueError(
                    f"the page does not answer at {blocks.local_url}: the machine is too busy, or a proxy is asked "
                    "for addresses of this machine, too (see NO_PROXY)"
                ) from error


__all__ = ["MODEL_QUEUE", "Page", "check_length", "import_gradio", "serve"]
