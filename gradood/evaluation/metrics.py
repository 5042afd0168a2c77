"""Detection metrics of scores: AUROC, AUPR, FPR at 95 % TPR."""

from dataclasses import dataclass

import numpy as np

from gradood.evaluation.curves import Scores, as_scores, ranked, roc_points
from gradood.results import Result


@dataclass(frozen=True)
class Metrics(Result):
    """Detection metrics, all in [0, 1], with the counts behind them; see ``evaluate``."""

    auroc: float
    aupr_anomalous: float
    aupr_normal: float
    fpr95: float
    detection_error: float
    count_normal: int
    count_anomalous: int


def evaluate(scores_normal: Scores, scores_anomalous: Scores) -> Metrics:
    r"""Compare the scores of normal and of anomalous inputs, threshold by threshold.

    Anomalous is the positive class, and a higher score means more anomalous: the decision at
    threshold t is "anomalous if score >= t". With TPR(t) the share of anomalous and FPR(t) the
    share of normal inputs at or above t::

        auroc           = P(a > n) + P(a = n) / 2   for a random anomalous a and normal n
        aupr_anomalous  = sum_k (R_k - R_(k-1)) P_k   over the distinct thresholds, descending,
                          R recall and P precision (average precision, no interpolation)
        aupr_normal     = the same with normal as the positive class and all scores negated
        fpr95           = min {FPR(t) : TPR(t) >= 0.95}
        detection_error = min over t of (1 - TPR(t) + FPR(t)) / 2

    ``detection_error`` weighs both kinds of error equally, whatever the counts; the thresholds that
    call everything or nothing anomalous are among the candidates, so it is at most 1/2. Equal
    scores are never separated: ties count one half in the AUROC, and go together everywhere else.
    AUPRs depend on how many inputs there are of each kind, the other three do not.

    Only the order of the scores matters. They are compared as float64, which holds every float32,
    float16 and bfloat16 exactly. +inf (and -inf) is a score like any other.

    Args:
        scores_normal: Tensor on any device, array or list, shape ``[N]``, N >= 1.
        scores_anomalous: The same, ``[M]``, M >= 1.

    Returns:
        ``Metrics``; shares, not percentages.

    Raises:
        InputError: An argument is empty, not one-dimensional, not real numbers, or holds NaN.

    Example:
        >>> from gradood.evaluation import evaluate
        >>> evaluate([0.1, 0.2, 0.3, 0.4], [0.4, 0.9]).auroc
        0.9375
    """
    # Imported late: scikit-learn takes a second, and most of gradood does without.
    from sklearn.metrics import average_precision_score, roc_auc_score

    normal = as_scores(scores_normal, "scores_normal")
    anomalous = as_scores(scores_anomalous, "scores_anomalous")
    ranks, _ = ranked(normal, anomalous)
    is_anomalous = np.repeat([0, 1], [normal.size, anomalous.size])
    fpr, tpr, _ = roc_points(normal, anomalous)
    return Metrics(
        auroc=float(roc_auc_score(is_anomalous, ranks)),
        aupr_anomalous=float(average_precision_score(is_anomalous, ranks)),
        aupr_normal=float(average_precision_score(1 - is_anomalous, -ranks)),
        fpr95=float(fpr[tpr >= 0.95].min()),
        detection_error=float((1 - tpr + fpr).min() / 2),
        count_normal=normal.size,
        count_anomalous=anomalous.size,
    )
