"""The CUDA path: kernels compiled for GPUs that are not there, checked and timed where one is."""
