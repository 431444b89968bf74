"""The page of a language model."""

from typing import Any

from .page import MODEL_QUEUE, Page, check_length, import_gradio
from .style import fault
from .text_html import draw_continuations, draw_lens, draw_memory
from .text_reading import TextReader


NO_EXITS = "none"
# the rule that the page opens with: the model's own gate, or what any looped model can follow
GATE, FIRST_RULE = "gate", "kl"
NEW_TOKENS, MOST_NEW_TOKENS = 16, 64
# characters that a prompt may have: the page is for looking, and on the Hub it is open to all
LONGEST_PROMPT = 4000


def read_text(
    reader: TextReader, prompt: str, depth: float | None, new_tokens: float, criterion: str, threshold: float | None
) -> tuple[str, str, str]:
    """Read a prompt as the page does, and draw it.

    Returns:
        `tuple[str, str, str]`: the continuations, the lens and the memory, as HTML; if the prompt or an argument does
        not fit, the first says why and the others are empty.
    """
    rule = None if criterion == NO_EXITS else criterion
    try:
        check_length("the prompt", prompt, LONGEST_PROMPT)
        reading = reader.read(prompt, None if depth is None else int(depth), int(new_tokens), rule, threshold)
    except ValueError as error:
        return fault(str(error)), "", ""
    return draw_continuations(reading, reader.slider), draw_lens(reading), draw_memory(reading)


def text_page(reader: TextReader, page: Page) -> Any:
    """Build the page of a language model.

    Args:
        reader (`TextReader`): reads its prompts.
        page (`Page`): what stands on the page besides.

    Returns:
        `gradio.Blocks`: the page.
    """
    gr: Any = import_gradio()
    slider, rules = reader.slider, reader.rules
    with page.blocks() as blocks:
        prompt = gr.Textbox(
            page.example, label="Prompt", lines=2, max_lines=8, max_length=LONGEST_PROMPT, elem_id="prompt",
            placeholder="Text to continue; Shift and Enter continue it",
        )  # fmt: skip
        with gr.Row():
            depth: Any = gr.State(None)
            if slider is not None:
                label = slider.label.capitalize()
                depth = gr.Slider(1, slider.largest, slider.trained, step=1, label=label, elem_id="depth")
            # a model that ends its texts soon says so in its settings
            length = min(page.new_tokens or NEW_TOKENS, MOST_NEW_TOKENS)
            new_tokens = gr.Slider(1, MOST_NEW_TOKENS, length, step=1, label="New tokens", elem_id="new-tokens")
            criterion: Any = gr.State(NO_EXITS)
            threshold: Any = gr.State(None)
            if rules:
                rule = GATE if GATE in rules else FIRST_RULE
                criterion = gr.Dropdown([NO_EXITS, *rules], value=rule, label="Exit rule", elem_id="exit-rule")
                threshold = gr.Number(rules[rule], label="Threshold", elem_id="threshold", minimum=0, step=0.0001)
        run = gr.Button("Continue", variant="primary", elem_id="run")
        continuations = gr.HTML(elem_id="continuations")
        if reader.model.config.has_loops:
            gr.Markdown("### The answer after every loop")
        lens = gr.HTML(elem_id="lens", visible=reader.model.config.has_loops)
        if reader.model.config.kind == "time":
            gr.Markdown("### What the model still reads of the text")
        memory = gr.HTML(elem_id="memory", visible=reader.model.config.kind == "time")

        def read(*values: Any) -> tuple[str, str, str]:
            return read_text(reader, *values)

        inputs, outputs = [prompt, depth, new_tokens, criterion, threshold], [continuations, lens, memory]
        triggers = [run.click, prompt.submit, new_tokens.change]
        triggers += [depth.change] if slider is not None else []
        if rules:
            triggers.append(threshold.submit)
            chosen = criterion.input(lambda name: rules.get(name, 0), criterion, threshold, queue=False)
            chosen.then(read, inputs, outputs, **MODEL_QUEUE)
        if page.example:
            triggers.append(blocks.load)
        gr.on(triggers, read, inputs, outputs, trigger_mode="always_last", **MODEL_QUEUE)
    return blocks


__all__ = ["read_text", "text_page"]
