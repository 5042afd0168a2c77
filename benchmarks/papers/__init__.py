"""The tables of the two papers, made again on CIFAR-10 with public classifiers."""
