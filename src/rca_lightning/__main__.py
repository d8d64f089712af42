"""`python -m rca_lightning` is `rca`."""

from rca_lightning.cli import console

if __name__ == "__main__":
    console()
