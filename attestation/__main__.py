"""`python -m attestation`: the command line of this package."""

from attestation.cli import main

if __name__ == "__main__":
    main()
