"""The objective with every option as an argument, in the order of tests/reference.py's loop."""

from st_simcse.objective import Batch, Comparison, info_nce
from st_simcse.objective.edits import FocalMargin, OwnNegativeWeight, SimilarityThreshold


def contrast(
    anchors,
    positives,
    negatives=None,
    temperature=0.05,
    weight=1.0,
    symmetric=False,
    rows=slice(None),
    keys=None,
    threshold=None,
    shared=None,
    focal=None,
    similarities=None,
):
    edits = [FocalMargin(focal)] if focal is not None else []
    edits += [SimilarityThreshold(threshold)] if threshold is not None else []
    edits += [OwnNegativeWeight(weight)] if weight != 1 else []
    batch = Batch(
        anchors,
        positives,
        negatives,
        shared_negatives=shared,
        text_keys=keys,
        positive_similarities=similarities,
        rows=rows,
    )
    return info_nce(batch, temperature, edits, Comparison(symmetric=symmetric))
