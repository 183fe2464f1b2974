"""`python -m embspace_lens` runs the command `embspace-lens`."""

from .cli import main

if __name__ == "__main__":
    main()
