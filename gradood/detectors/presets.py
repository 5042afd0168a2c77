"""Which parts ``GradientDetector`` is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: By name. Chosen on svhn, textures and tiny-imagenet with ResNet-20, on the development half of
#: the Fashion-MNIST suite, and on the near-anomalous classes of its first classifier without them;
#: ``benchmarks/results`` shows the others.
PRESETS: Mapping[str, Sequence[str]] = {
    "forward": ("layers", "class energy", "relative logits"),
    "fast": ("layers", "class energy", "relative logits", "norms"),
    # An attacked input is often as sure as its class is: the plain energy tells more.
    "adversarial": ("layers", "energy", "relative logits", "margin drop"),
}

#: Presets that were not worth what they cost, and what does as well.
GONE: Mapping[str, str] = {"best": '"forward", which is as good without a backward pass a class'}

#: What presets were in files of versions that did not name the parts.
EARLIER: Mapping[str, Sequence[str]] = {
    "fast": ("norm neighbours", "relative"),
    "adversarial": ("norms:two", "norms+features:two"),
    "best": ("norm neighbours:every", "relative logits"),
}
