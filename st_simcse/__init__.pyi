from .batching import LengthGroupedBatchSampler
from .checkpoints import load_simcse, save_transformer
from .evaluation import AlignmentUniformityEvaluator, sts_evaluators
from .heads import ProjectionHead
from .hub import HubDataset
from .losses import SupSimCSELoss, UnsupSimCSELoss
from .modeling import build_model
from .objective import info_nce, sup_simcse_loss, unsup_simcse_loss
from .readers import (
    NLIReader,
    SentenceReader,
    TripletReader,
    load_sts,
)
from .trainer import SimCSETrainer, SimCSETrainingArguments

__all__ = [
    "AlignmentUniformityEvaluator",
    "HubDataset",
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
