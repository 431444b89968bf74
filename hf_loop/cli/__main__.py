"""`python -m hf_loop.cli`, the same as `hf-loop`."""

from .main import main


if __name__ == "__main__":
    main()
