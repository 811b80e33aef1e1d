"""What compiled kernels for the CPU share: numba, BLAS, threads and the operations of one core."""
