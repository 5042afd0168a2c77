"""``python -m benchmarks.measuring``: what gradient norms cost beside what they are measured with.

More than ``gradood bench``: other packages (``peers``), peak memory, bfloat16 autocast, a figure;
every method is held against a float64 loop (``check``), and rows are appended to a CSV file
(``records``). A ``worker`` process times methods in turns or measures the memory of one; a
``study`` starts workers and turns what they say into rows.
"""
