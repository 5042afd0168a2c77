"""Kernels compiled for GPUs that are not there, and what they would cost: for their developers."""
