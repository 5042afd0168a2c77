"""What a sample of noisy scores says about the smoothed score nearby: one family of bounds a file.

Every function states its claim, proves it and names its source. ``alpha`` is the probability,
over the noise, that the claim is false; each claim is one-sided. ``c = r / sigma`` is the radius of
the perturbation in units of the noise. Claims are about the smoothed model, never the base model.
"""

from gradood.smoothing.bounds import (
    anytime,
    binomial,
    dataset,
    histogram,
    mean,
    quantile,
    sequential,
)

__all__ = ["anytime", "binomial", "dataset", "histogram", "mean", "quantile", "sequential"]
