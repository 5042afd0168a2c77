"""Which parts ``GradientDetector`` is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: By name. Chosen on svhn, textures and tiny-imagenet with ResNet-20, and on the development half
#: of the Fashion-MNIST suite; ``benchmarks/results/cifar.md`` shows the others, looked at once.
PRESETS: Mapping[str, Sequence[str]] = {
    "forward": ("layers", "directions", "relative", "energy"),
    "fast": ("layers", "directions", "relative", "energy", "norms"),
    "adversarial": ("layers", "directions", "relative", "energy", "margin drop"),
}

#: Presets that were not worth what they cost, and what does as well.
GONE: Mapping[str, str] = {"best": '"forward", which is as good without a backward pass a class'}

#: What presets were in files of versions that did not name the parts.
EARLIER: Mapping[str, Sequence[str]] = {
    "fast": ("norm neighbours", "relative"),
    "adversarial": ("norms:two", "norms+features:two"),
    "best": ("norm neighbours:every", "relative logits"),
}
