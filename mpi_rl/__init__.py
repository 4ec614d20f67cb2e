"""Asynchronous actor-critic learning over MPI: one parameter server, many workers, HDF5 files."""

__version__ = "0.1.0"
