"""`python -m embspace_lens` is `embspace-lens`."""

from .cli import main

if __name__ == "__main__":
    main()
