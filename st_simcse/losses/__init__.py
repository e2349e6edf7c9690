"""The two losses and their options. Each class in ``OPTIONS`` is also a flag of the command line."""

from st_simcse.losses.base import SimCSELoss
from st_simcse.losses.dimensions import DimensionContrast
from st_simcse.losses.dropout_free import DropoutFreeNegatives
from st_simcse.losses.heads import ProjectionHead
from st_simcse.losses.mlm import MaskedLanguageModel
from st_simcse.losses.options import Encoder, EncoderOption, Option, Source, SourceOption, Term, TermOption
from st_simcse.losses.queue import MomentumQueue
from st_simcse.losses.ranking import RankConsistency, RankDistillation
from st_simcse.losses.shared_layers import SharedLayers
from st_simcse.losses.simcse import SupSimCSELoss, UnsupSimCSELoss
from st_simcse.losses.wrappers import check_wrappers
from st_simcse.objective import edits

OPTIONS = [
    edits.FocalMargin,
    edits.AngularMargin,
    edits.HardnessWeighting,
    edits.SimilarityThreshold,
    edits.OwnNegativeWeight,
    edits.GuidedNegatives,
    MomentumQueue,
    DropoutFreeNegatives,
    MaskedLanguageModel,
    RankDistillation,
    RankConsistency,
    DimensionContrast,
    SharedLayers,
]

__all__ = [
    "OPTIONS",
    "DimensionContrast",
    "DropoutFreeNegatives",
    "Encoder",
    "EncoderOption",
    "MaskedLanguageModel",
    "MomentumQueue",
    "Option",
    "ProjectionHead",
    "RankConsistency",
    "RankDistillation",
    "SharedLayers",
    "SimCSELoss",
    "Source",
    "SourceOption",
    "SupSimCSELoss",
    "Term",
    "TermOption",
    "UnsupSimCSELoss",
    "check_wrappers",
]
