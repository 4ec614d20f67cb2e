"""Draw episode returns against steps and hours: the same thing as ``mpi_rl plot``.

    python -m analysis.learning_curves FILE... [--output x.png]
"""

import sys

from mpi_rl.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "plot")
    main()
