"""The paper's evaluation as ST evaluators: STS and transfer tasks with their tables, and alignment and uniformity."""

from st_simcse.evaluation.alignment_uniformity import AlignmentUniformityEvaluator
from st_simcse.evaluation.knn_retrieval import KNNEvaluator, load_classes, load_retrieval
from st_simcse.evaluation.sts import (
    MTEB_LANGUAGES,
    STS_DEV_TASKS,
    STS_TASKS,
    mteb_scores,
    sts_evaluators,
    sts_scores,
)
from st_simcse.evaluation.sts_zh import STS_ZH_SPLITS, STS_ZH_TASKS, sts_zh_evaluators, sts_zh_scores
from st_simcse.evaluation.table import check_defined, format_table
from st_simcse.evaluation.transfer import TRANSFER_TASKS, TransferEvaluator, transfer_evaluators, transfer_scores

__all__ = [
    "MTEB_LANGUAGES",
    "STS_DEV_TASKS",
    "STS_TASKS",
    "STS_ZH_SPLITS",
    "STS_ZH_TASKS",
    "TRANSFER_TASKS",
    "AlignmentUniformityEvaluator",
    "KNNEvaluator",
    "TransferEvaluator",
    "check_defined",
    "format_table",
    "load_classes",
    "load_retrieval",
    "mteb_scores",
    "sts_evaluators",
    "sts_scores",
    "sts_zh_evaluators",
    "sts_zh_scores",
    "transfer_evaluators",
    "transfer_scores",
]
