"""`python -m edgewright.cli` is the same as `edgewright`."""

from edgewright.cli import main

if __name__ == "__main__":
    main()
