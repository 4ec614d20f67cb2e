"""pytest itself never becomes an MPI rank: MPI is loaded without being started."""

import mpi4py

mpi4py.rc.initialize = False
mpi4py.rc.finalize = False
