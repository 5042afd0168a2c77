"""What `import gradood` offers; the only list of public names."""

from . import (
    attacks as attacks,
    data as data,
    detectors as detectors,
    distro as distro,
    evaluation as evaluation,
    gradients as gradients,
    smoothing as smoothing,
)
from .detectors import (
    ConfoundingDetector as ConfoundingDetector,
    Detector as Detector,
    Energy as Energy,
    ExGrad as ExGrad,
    GradientDetector as GradientDetector,
    GradientGMM as GradientGMM,
    GradientKNN as GradientKNN,
    GradientMahalanobis as GradientMahalanobis,
    GradNorm as GradNorm,
    GradUncertainty as GradUncertainty,
    MaxSoftmax as MaxSoftmax,
    load as load,
)
from .evaluation import (
    Metrics as Metrics,
    control_fdr as control_fdr,
    evaluate as evaluate,
    evaluate_adversarial as evaluate_adversarial,
    evaluate_guaranteed as evaluate_guaranteed,
)
from .gradients import (
    Explanation as Explanation,
    GradientGrams as GradientGrams,
    GradientNorms as GradientNorms,
    explain as explain,
    gradient_grams as gradient_grams,
    gradient_norms as gradient_norms,
)
from .smoothing import (
    ClassCertificates as ClassCertificates,
    DecisionCertificates as DecisionCertificates,
    EpsDenoiser as EpsDenoiser,
    MeanCertificates as MeanCertificates,
    QuantileCertificates as QuantileCertificates,
    Smoothing as Smoothing,
    certify_class as certify_class,
    certify_decision as certify_decision,
    certify_mean as certify_mean,
    certify_quantile as certify_quantile,
    certify_spread as certify_spread,
    from_diffusers as from_diffusers,
    from_openai as from_openai,
)

__version__: str
