"""What `import gradood` offers; the only list of public names."""

from . import (
    attacks as attacks,
)
from . import (
    data as data,
)
from . import (
    detectors as detectors,
)
from . import (
    distro as distro,
)
from . import (
    evaluation as evaluation,
)
from . import (
    gradients as gradients,
)
from . import (
    smoothing as smoothing,
)
from .detectors import (
    ConfoundingDetector as ConfoundingDetector,
)
from .detectors import (
    Detector as Detector,
)
from .detectors import (
    Energy as Energy,
)
from .detectors import (
    ExGrad as ExGrad,
)
from .detectors import (
    GradientDetector as GradientDetector,
)
from .detectors import (
    GradientGMM as GradientGMM,
)
from .detectors import (
    GradientKNN as GradientKNN,
)
from .detectors import (
    GradientMahalanobis as GradientMahalanobis,
)
from .detectors import (
    GradNorm as GradNorm,
)
from .detectors import (
    GradUncertainty as GradUncertainty,
)
from .detectors import (
    MaxSoftmax as MaxSoftmax,
)
from .detectors import (
    load as load,
)
from .evaluation import (
    Metrics as Metrics,
)
from .evaluation import (
    control_fdr as control_fdr,
)
from .evaluation import (
    evaluate as evaluate,
)
from .evaluation import (
    evaluate_adversarial as evaluate_adversarial,
)
from .evaluation import (
    evaluate_guaranteed as evaluate_guaranteed,
)
from .gradients import (
    Explanation as Explanation,
)
from .gradients import (
    GradientGrams as GradientGrams,
)
from .gradients import (
    GradientNorms as GradientNorms,
)
from .gradients import (
    explain as explain,
)
from .gradients import (
    gradient_grams as gradient_grams,
)
from .gradients import (
    gradient_norms as gradient_norms,
)
from .smoothing import (
    ClassCertificates as ClassCertificates,
)
from .smoothing import (
    DecisionCertificates as DecisionCertificates,
)
from .smoothing import (
    EpsDenoiser as EpsDenoiser,
)
from .smoothing import (
    MeanCertificates as MeanCertificates,
)
from .smoothing import (
    QuantileCertificates as QuantileCertificates,
)
from .smoothing import (
    Smoothing as Smoothing,
)
from .smoothing import (
    certify_class as certify_class,
)
from .smoothing import (
    certify_decision as certify_decision,
)
from .smoothing import (
    certify_mean as certify_mean,
)
from .smoothing import (
    certify_quantile as certify_quantile,
)
from .smoothing import (
    certify_spread as certify_spread,
)
from .smoothing import (
    from_diffusers as from_diffusers,
)
from .smoothing import (
    from_openai as from_openai,
)

__version__: str
