"""`python -m zipnet`."""

from zipnet.cli import main

if __name__ == "__main__":
    main(prog_name="zipnet")
