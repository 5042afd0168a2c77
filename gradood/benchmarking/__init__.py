"""What gradient norms cost beside what they are measured against: ``gradood bench``.

``workloads`` are models with a batch; ``methods`` and ``peers`` are ways to their norms; ``check``
holds each against a float64 loop. A ``worker`` process times them in turns or measures the memory
of one; a ``study`` starts workers and turns what they say into ``records``.
"""
