from .batching import LengthGroupedBatchSampler
from .checkpoints import load_simcse, save_transformer
from .dropout import model_dropout, set_dropout
from .evaluation import AlignmentUniformityEvaluator, sts_evaluators
from .hub import HubDataset
from .losses import (
    DropoutFreeNegatives,
    MaskedLanguageModel,
    MomentumQueue,
    ProjectionHead,
    SharedLayers,
    SupSimCSELoss,
    UnsupSimCSELoss,
)
from .modeling import build_model
from .objective import Batch, Comparison, info_nce, sup_simcse_loss, unsup_simcse_loss
from .objective.edits import AngularMargin, FocalMargin, HardnessWeighting, OwnNegativeWeight, SimilarityThreshold
from .readers import (
    NLIReader,
    SentenceReader,
    TripletReader,
    load_sts,
)
from .trainer import SimCSETrainer, SimCSETrainingArguments

__all__ = [
    "AlignmentUniformityEvaluator",
    "AngularMargin",
    "Batch",
    "Comparison",
    "DropoutFreeNegatives",
    "FocalMargin",
    "HardnessWeighting",
    "HubDataset",
    "LengthGroupedBatchSampler",
    "MaskedLanguageModel",
    "MomentumQueue",
    "NLIReader",
    "OwnNegativeWeight",
    "ProjectionHead",
    "SentenceReader",
    "SharedLayers",
    "SimCSETrainer",
    "SimCSETrainingArguments",
    "SimilarityThreshold",
    "SupSimCSELoss",
    "TripletReader",
    "UnsupSimCSELoss",
    "build_model",
    "info_nce",
    "load_simcse",
    "load_sts",
    "model_dropout",
    "save_transformer",
    "set_dropout",
    "sts_evaluators",
    "sup_simcse_loss",
    "unsup_simcse_loss",
]
