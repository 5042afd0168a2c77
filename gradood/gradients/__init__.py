"""Per-sample gradient norms of a model's parameters, without the gradients."""

from gradood.gradients.api import GradientNorms, gradient_norms
from gradood.gradients.differentiable import differentiable_norms
from gradood.gradients.explanation import Explanation, Row, explain

__all__ = [
    "Explanation",
    "GradientNorms",
    "Row",
    "differentiable_norms",
    "explain",
    "gradient_norms",
]
