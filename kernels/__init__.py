"""Triton kernels, one family a file. Imported as ``gradood.kernels``, never as ``kernels``."""
