"""Asynchronous actor-critic learning over MPI: one parameter server, many workers, HDF5 run
files.
"""

__version__ = "0.1.0"
