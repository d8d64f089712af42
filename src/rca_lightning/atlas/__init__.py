"""The prototype atlas: which regions of which photographs each prototype stands for."""
