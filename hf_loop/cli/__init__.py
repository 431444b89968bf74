"""The `hf-loop` command. No module of this package imports torch or transformers at its top, so that help is fast."""
