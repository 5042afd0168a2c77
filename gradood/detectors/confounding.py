"""The paper's detector: a small network trained to tell normal from anomalous gradient norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from gradood.detectors.features import Standardiser, log_norms, require_finite
from gradood.detectors.norm_detector import LogNormDetector
from gradood.gradients.engine import full_precision

if TYPE_CHECKING:
    from typing_extensions import Self

    from gradood.detectors.base import Source

# Fixed, not searched: the same for every model and data set.
_HIDDEN = 64
_STEPS = 250
_LEARNING_RATE = 1e-2
_WEIGHT_DECAY = 1e-4

#: Standardised features are clipped to ± this: one wild norm must not saturate the network.
_CLIP = 10.0


class ConfoundingDetector(LogNormDetector, name="confounding"):
    """Two-layer network on log squared gradient norms under a confounding label.

    ``score = w₂ᵀ relu(W₁ z + b₁) + b₂``, the log-odds of being anomalous, with z the log norms
    standardised on the normal data. One hidden layer of 64, trained on all data at once for 250
    Adam steps with cross-entropy in which both classes weigh the same. Source: Lee, Prabhushankar,
    AlRegib, "Gradient-Based Adversarial and Out-of-Distribution Detection", 2022, arXiv 2206.08255.

    It knows the anomalies it was trained on; on kinds it never saw it can be worse than a detector
    that needs none, and trained on noise alone it falls below chance on real sets.

    Args:
        model: Classifier in eval mode.
        seed: Initial weights of the network.
        **options: As in ``NormDetector``.

    Example:
        >>> detector = gradood.ConfoundingDetector(model).fit(normal, anomalies)
        >>> scores = detector.score(images)
    """

    LEARNED = LogNormDetector.LEARNED | {
        "hidden_weight",
        "hidden_bias",
        "output_weight",
        "output_bias",
    }

    def __init__(self, model: nn.Module, *, seed: int = 0, **options: Any) -> None:
        super().__init__(model, **options)
        self.seed = seed

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"seed": self.seed}

    def fit(self, normal: Source, anomalies: Source) -> Self:
        """Train on normal inputs and examples of anomalies; forgets the threshold.

        Args:
            normal: Normal inputs, or their ``GradientNorms``.
            anomalies: Anomalous inputs of as many kinds as can be had, or their ``GradientNorms``.

        Raises:
            InputError: Fewer than five normal inputs that differ, no anomaly, or inputs that hold
                NaN or Inf.
        """
        self._forget()
        normal_features = log_norms(self._norms(normal, "fitting on normal inputs").values)
        anomalous_features = log_norms(self._norms(anomalies, "fitting on anomalies").values)
        require_finite(anomalous_features, "anomalies")
        standardise = Standardiser.fit(normal_features)
        network = self._train(standardise(normal_features), standardise(anomalous_features))
        self._learned = standardise._asdict() | network
        return self

    def _train(self, normal: Tensor, anomalous: Tensor) -> dict[str, Tensor]:
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
            torch.enable_grad(),
            full_precision("cpu"),
        ):
            torch.default_generator.manual_seed(self.seed)  # of the CPU, and no other device's
            # On the CPU: the network is tiny, and a seed gives the same one wherever it is scored.
            features = _clip(torch.cat([normal.cpu().clone(), anomalous.cpu().clone()]))
            target = torch.cat(
                [
                    torch.zeros(len(normal), dtype=torch.float32, device="cpu"),
                    torch.ones(len(anomalous), dtype=torch.float32, device="cpu"),
                ]
            )
            weight = target * (0.5 / len(anomalous)) + (1 - target) * (0.5 / len(normal))
            sizes = ((features.shape[1], _HIDDEN), (_HIDDEN, 1))
            hidden, output = (nn.Linear(*size, dtype=torch.float32, device="cpu") for size in sizes)
            weights = [hidden.weight, hidden.bias, output.weight, output.bias]
            optimizer = torch.optim.Adam(weights, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
            for _ in range(_STEPS):
                log_odds = output(hidden(features).relu()).squeeze(1)
                loss = binary_cross_entropy_with_logits(log_odds, target, weight, reduction="sum")
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
        names = ("hidden_weight", "hidden_bias", "output_weight", "output_bias")
        return {n: w.detach().to(normal.device) for n, w in zip(names, weights, strict=True)}

    def _score_features(self, features: Tensor) -> Tensor:
        learned = self.state
        hidden = linear(_clip(features), learned["hidden_weight"], learned["hidden_bias"]).relu()
        return linear(hidden, learned["output_weight"], learned["output_bias"]).squeeze(1)


def _clip(features: Tensor) -> Tensor:
    return features.clamp(-_CLIP, _CLIP)
