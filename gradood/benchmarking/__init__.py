"""What a user without a checkout measures: ``gradood bench`` and ``gradood selftest``.

``workloads`` are models with a batch, ``methods`` ways to their norms, ``bench`` times them in
turns. ``arithmetic`` asks whether the machine computes right, ``operators`` whether a backend does.
"""
