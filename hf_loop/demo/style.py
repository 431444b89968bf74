"""The style sheet of the page, for light and dark screens, and the pieces that all of its tables share."""

from html import escape

from ..evaluation.figures import COLORS


# of probabilities, and of what stands out: an exit, a change
FILL, MARK = COLORS[0], COLORS[1]
FILL_CHANNELS = ", ".join(str(int(FILL[start : start + 2], 16)) for start in (1, 3, 5))
# beyond this share of the fill, text on it is white
INK_TURNS = 0.55


# gradio puts the page's own selector before each of these; it fails on a list of selectors of which one has `.dark`
CSS = f"""
.loop-page {{ --written: {FILL}; }}
.dark .loop-page {{ --written: #7cc4f0; }}
.loop-page {{ color: var(--body-text-color); font-size: 14px; line-height: 1.45; }}
.loop-page .note {{ opacity: 0.72; margin: 6px 0 0; }}
.loop-page .fault {{ color: {MARK}; font-weight: 600; }}
.loop-page .scroll {{ overflow: auto; max-height: 640px; }}
.loop-page table {{ border: 0; border-collapse: separate; border-spacing: 0; margin: 0; width: auto; }}

.loop-page .columns {{ display: flex; flex-wrap: wrap; gap: 10px; }}
.loop-page .column {{ flex: 1 1 170px; min-width: 0; border: 1px solid var(--border-color-primary); border-radius: 6px;
  padding: 8px 10px; }}
.loop-page .column.chosen {{ border: 2px solid {FILL}; padding: 7px 9px; }}
.loop-page .column h4 {{ margin: 0 0 4px; font-size: 13px; font-weight: 600; color: var(--body-text-color); }}
.loop-page .column p {{ margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-family: var(--font-mono); }}
.loop-page .other {{ color: {MARK}; }}

.loop-page .lens th, .loop-page .lens td {{ padding: 2px 7px; text-align: center; white-space: nowrap; font-size: 12px;
  border: 1px solid transparent; }}
.loop-page .lens td {{ font-family: var(--font-mono); border-color: var(--background-fill-primary); }}
.loop-page .lens thead th {{ font-family: var(--font-mono); font-weight: 600; }}
.loop-page .lens thead tr.parts th {{ font-family: var(--font); font-weight: 400; text-align: left;
  opacity: 0.72; }}
.loop-page .lens tbody th {{ font-weight: 400; text-align: right; }}
.loop-page .lens tr.trained th {{ font-weight: 700; }}
.loop-page .lens .first-new {{ border-left: 2px solid {FILL}; }}
.loop-page .lens td.exit {{ outline: 2px solid {MARK}; outline-offset: -2px; }}
.loop-page .lens td.skipped {{ opacity: 0.6; }}
.loop-page .lens td.step {{ min-width: 96px; text-align: left; font-family: var(--font);
  color: var(--body-text-color); }}
.loop-page .bar {{ display: inline-block; height: 9px; margin-right: 5px; background: {MARK}; }}

.loop-page .memory {{ display: flex; flex-wrap: wrap; gap: 8px; }}
.loop-page .block {{ border: 1px solid var(--border-color-primary); border-radius: 6px; padding: 4px 6px; }}
.loop-page .block h4 {{ margin: 0 0 2px; font-size: 12px; font-weight: 400;
  color: var(--body-text-color); opacity: 0.72; }}
.loop-page .token {{ display: inline-block; font-family: var(--font-mono); font-size: 12px; padding: 0 4px;
  margin: 1px; border-radius: 3px; background: rgba({FILL_CHANNELS}, 0.22); }}
.loop-page .token.gone {{ background: none; opacity: 0.55; }}

.loop-page .boards {{ display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }}
.loop-page figure {{ margin: 0; }}
.loop-page figcaption {{ font-size: 12px; margin-top: 3px; text-align: center; }}
.loop-page figure.same table {{ opacity: 0.45; }}
.loop-page table.board {{ border: 2px solid var(--body-text-color); border-collapse: collapse; }}
.loop-page table.board td {{ width: 1.7em; height: 1.7em; padding: 0; text-align: center; line-height: 1;
  border: 1px solid var(--border-color-primary); font-family: var(--font-mono); color: var(--written); }}
.loop-page .small table.board {{ font-size: 11px; }}
.loop-page .large table.board {{ font-size: 17px; }}
.loop-page table.board td.given {{ font-weight: 700; color: var(--body-text-color); }}
.loop-page table.board td.broken {{ color: white; background: {MARK}; }}
.loop-page table.board td.changed {{ box-shadow: inset 0 0 0 2px {MARK}; }}
.loop-page table.board td.wall {{ background: var(--body-text-color); color: var(--body-text-color); }}
.loop-page table.board td.way {{ background: rgba({FILL_CHANNELS}, 0.35); }}
.loop-page table.board td.box-right {{ border-right: 2px solid var(--body-text-color); }}
.loop-page table.board td.box-bottom {{ border-bottom: 2px solid var(--body-text-color); }}
"""


def section(*parts: str) -> str:
    """Put parts of HTML into a section of the page."""
    return f'<div class="loop-page">{"".join(part for part in parts if part)}</div>'


def note(text: str) -> str:
    """Return a sentence that explains what is above it."""
    return f'<p class="note">{escape(text)}</p>'


def fault(message: str) -> str:
    """Return a message that says why there is nothing to see."""
    return section(f'<p class="fault">{escape(" ".join(message.split()))}</p>')


def fill(share: float | None) -> str:
    """Return the style of a cell that stands for a probability."""
    if share is None:
        return ""
    ink = "; color: white" if share > INK_TURNS else ""
    return f' style="background: rgba({FILL_CHANNELS}, {share:.2f}){ink}"'


__all__ = ["CSS", "fault", "fill", "note", "section"]
