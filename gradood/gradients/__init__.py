"""Per-sample gradient norms of a model's parameters, without the gradients."""

from gradood.gradients.api import GradientNorms, gradient_norms

__all__ = ["GradientNorms", "gradient_norms"]
