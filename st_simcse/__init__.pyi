from .data.batching import LengthGroupedBatchSampler
from .data.hub_dataset import HubDataset
from .data.readers import (
    NLIReader,
    SentenceReader,
    TripletReader,
)
from .data.scored_pairs import load_sts
from .data.teacher import add_teacher_embeddings
from .data.views import Crops, TokenCutoff, WordRepetition
from .evaluation import (
    AlignmentUniformityEvaluator,
    KNNEvaluator,
    TransferEvaluator,
    load_classes,
    load_retrieval,
    sts_evaluators,
    sts_zh_evaluators,
    transfer_evaluators,
)
from .losses import (
    DimensionContrast,
    DropoutFreeNegatives,
    MaskedLanguageModel,
    MomentumQueue,
    ProjectionHead,
    RankConsistency,
    RankDistillation,
    SharedLayers,
    SupSimCSELoss,
    UnsupSimCSELoss,
)
from .models.checkpoints import load_simcse, save_transformer
from .models.dropout import model_dropout, set_dropout
from .models.fast_encode import fast_encode
from .models.lora import merge_lora
from .models.modeling import build_model
from .models.whitening import whiten
from .objective import Batch, Comparison, info_nce, sup_simcse_loss, unsup_simcse_loss
from .objective.edits import (
    AngularMargin,
    FocalMargin,
    GuidedNegatives,
    HardnessWeighting,
    OwnNegativeWeight,
    SimilarityThreshold,
)
from .search.searcher import Searcher
from .training.trainer import SimCSETrainer
from .training.training_arguments import SimCSETrainingArguments

__all__ = [
    "AlignmentUniformityEvaluator",
    "AngularMargin",
    "Batch",
    "Comparison",
    "Crops",
    "DimensionContrast",
    "DropoutFreeNegatives",
    "FocalMargin",
    "GuidedNegatives",
    "HardnessWeighting",
    "HubDataset",
    "KNNEvaluator",
    "LengthGroupedBatchSampler",
    "MaskedLanguageModel",
    "MomentumQueue",
    "NLIReader",
    "OwnNegativeWeight",
    "ProjectionHead",
    "RankConsistency",
    "RankDistillation",
    "Searcher",
    "SentenceReader",
    "SharedLayers",
    "SimCSETrainer",
    "SimCSETrainingArguments",
    "SimilarityThreshold",
    "SupSimCSELoss",
    "TokenCutoff",
    "TransferEvaluator",
    "TripletReader",
    "UnsupSimCSELoss",
    "WordRepetition",
    "add_teacher_embeddings",
    "build_model",
    "fast_encode",
    "info_nce",
    "load_classes",
    "load_retrieval",
    "load_simcse",
    "load_sts",
    "merge_lora",
    "model_dropout",
    "save_transformer",
    "set_dropout",
    "sts_evaluators",
    "sts_zh_evaluators",
    "sup_simcse_loss",
    "transfer_evaluators",
    "unsup_simcse_loss",
    "whiten",
]
