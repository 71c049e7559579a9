"""`python -m edgejudge`: the command line, exactly as the `edgejudge` script runs it."""

from edgejudge.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
