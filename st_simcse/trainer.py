"""A SentenceTransformerTrainer whose checkpoints hold the loss's own weights too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer

__all__ = ["SimCSETrainer"]

LOSS_WEIGHTS_NAME = "loss.safetensors"


class SimCSETrainer(SentenceTransformerTrainer):
    """SentenceTransformerTrainer that saves the projection head with every checkpoint and resumes with it.

    A checkpoint of the plain trainer holds the model alone, since that is what inference needs. Resumed from it, a
    projection head starts anew while the optimizer goes on with the old one's moments. Without a head both trainers
    do the same.

    Raises:
        FileNotFoundError: on resuming with a head from a checkpoint that has none.
    """

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if weights := self._loss_weights():
            save_file(weights, Path(output_dir or self.args.output_dir, LOSS_WEIGHTS_NAME))

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        super()._load_from_checkpoint(checkpoint_path)
        weights = self._loss_weights()
        if not weights:
            return
        path = Path(checkpoint_path, LOSS_WEIGHTS_NAME)
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: the loss has weights of its own, but the checkpoint was saved without them. Train "
                "with SimCSETrainer from the start, or drop resume_from_checkpoint and load the checkpoint as a model"
            )
        with torch.no_grad():
            for name, saved in load_file(path).items():
                weights[name].copy_(saved)

    def _loss_weights(self) -> dict[str, torch.Tensor]:
        losses = self.loss if isinstance(self.loss, dict) else {"": self.loss}
        return {
            f"{dataset}.{name}".lstrip("."): tensor.detach()
            for dataset, loss in losses.items()
            for name, tensor in loss.state_dict().items()
            if not name.startswith("model.")
        }
