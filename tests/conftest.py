"""pytest itself never becomes an MPI rank: transport's records are used with MPI not started."""

import mpi4py

mpi4py.rc.initialize = False
mpi4py.rc.finalize = False
