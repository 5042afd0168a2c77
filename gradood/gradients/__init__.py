"""Per-sample gradient norms of a model's parameters, without the gradients."""

from gradood.gradients.api import GradientNorms, forward_norms, gradient_norms
from gradood.gradients.cuda_graph import cuda_graphs
from gradood.gradients.differentiable import differentiable_norms
from gradood.gradients.explanation import Explanation, Row, explain
from gradood.gradients.grams import GradientGrams, gradient_grams

__all__ = [
    "Explanation",
    "GradientGrams",
    "GradientNorms",
    "Row",
    "cuda_graphs",
    "differentiable_norms",
    "explain",
    "forward_norms",
    "gradient_grams",
    "gradient_norms",
]
