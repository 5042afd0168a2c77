"""CIFAR-10 against other picture sets, with a public classifier: ``python -m benchmarks.cifar``."""
