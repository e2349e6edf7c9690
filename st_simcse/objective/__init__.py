"""The training objective as functions of tensors, independent of models, files and processes."""

from st_simcse.objective.batch import Batch, Comparison, Direction
from st_simcse.objective.cross_entropy import row_losses
from st_simcse.objective.functional import info_nce, sup_simcse_loss, unsup_simcse_loss
from st_simcse.objective.geometry import alignment, normalize, uniformity
from st_simcse.objective.known_positives import KnownPositives
from st_simcse.objective.problem import Edit, Problem, Tile

__all__ = [
    "Batch",
    "Comparison",
    "Direction",
    "Edit",
    "KnownPositives",
    "Problem",
    "Tile",
    "alignment",
    "info_nce",
    "normalize",
    "row_losses",
    "sup_simcse_loss",
    "uniformity",
    "unsup_simcse_loss",
]
