"""The command line `rca`."""
