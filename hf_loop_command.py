"""The `hf-loop` command. It is outside of the package, whose import registers the models and takes seconds.

hf_loop sees that this module was imported before it and leaves registering to the commands that need a model, so that
`hf-loop --help` answers at once.
"""


def main() -> None:
    """The console script."""
    from hf_loop.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
