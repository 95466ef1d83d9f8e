"""The data path. Everything that touches packets, and the only place where numba lives."""

import os

# numpy's BLAS starts a thread for each core when it is imported; we need none, and the host must have no threads when it forks.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
