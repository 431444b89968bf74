"""A page on which to see a loop: `hf-loop demo` opens it here, and `hf-loop push --space` on the Hub.

What the page shows is computed and drawn as HTML by modules that need no gradio (`text_reading`, `memory_view`,
`puzzle_reading`, `text_html`, `puzzle_html`); `text_page` and `puzzle_page` put it on a page.
"""
