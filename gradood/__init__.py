"""gradood: is this input anomalous for my network, and can I prove it?

Per-sample gradient norms, anomaly detectors on them, and certificates for PyTorch classifiers.
"""
