"""SimCSE for sentence-transformers: the public names, and nothing else."""

from st_simcse.batching import LengthGroupedBatchSampler
from st_simcse.checkpoints import load_simcse, save_transformer
from st_simcse.evaluation import AlignmentUniformityEvaluator, sts_evaluators
from st_simcse.heads import ProjectionHead
from st_simcse.losses import SupSimCSELoss, UnsupSimCSELoss
from st_simcse.modeling import build_model
from st_simcse.objective import info_nce, sup_simcse_loss, unsup_simcse_loss
from st_simcse.readers import NLIReader, SentenceReader, TripletReader, load_sts
from st_simcse.trainer import SimCSETrainer, SimCSETrainingArguments

__all__ = [
    "AlignmentUniformityEvaluator",
    "LengthGroupedBatchSampler",
    "NLIReader",
    "ProjectionHead",
    "SentenceReader",
    "SimCSETrainer",
    "SimCSETrainingArguments",
    "SupSimCSELoss",
    "TripletReader",
    "UnsupSimCSELoss",
    "build_model",
    "info_nce",
    "load_simcse",
    "load_sts",
    "save_transformer",
    "sts_evaluators",
    "sup_simcse_loss",
    "unsup_simcse_loss",
]
