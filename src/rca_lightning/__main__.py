"""`python -m rca_lightning` is `rca`."""

from rca_lightning.cli.main import console

if __name__ == "__main__":
    console()
