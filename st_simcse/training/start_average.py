"""The average of a model's weights before and after a training, which forgets less than the trained ones."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from st_simcse.models.lora import adapters

__all__ = ["StartAverage", "check_start_weight"]


class StartAverage:
    r"""Keeps the weights of a model, to average them with what training makes of them.

    .. math:: \theta = \alpha \theta_\text{before} + (1 - \alpha) \theta_\text{after}

    (WiSE-FT: Wortsman et al., CVPR 2022, section 4, arXiv:2109.01903.)

    Args:
        model: as it is before the training.
        weight: :math:`\alpha`, from 0 to 1.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> model = tiny_model(["Two dogs run."])
        >>> average, layer = StartAverage(model, 0.25), next(model.parameters())
        >>> before = layer.detach().clone()
        >>> _ = layer.data.add_(1.0)
        >>> average.apply(model)
        >>> round(float((layer - before).mean()), 4)
        0.75
    """

    def __init__(self, model: SentenceTransformer, weight: float) -> None:
        self.weight = weight
        self.before = {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def apply(self, model: SentenceTransformer) -> None:
        """Put the average into the model, computed in float32."""
        for name, parameter in model.named_parameters():
            before = self.before[name].to(parameter.device).float()
            parameter.copy_(before.lerp(parameter.float(), 1 - self.weight))


def check_start_weight(weight: float, model: SentenceTransformer, state: Any, has_model_init: bool) -> None:
    """Whether a training can be averaged with its start.

    Args:
        weight: the share of the start; 0 for no average.
        model: the one that is trained.
        state: accelerate's.
        has_model_init: whether the trainer makes a model for each trial of a search.

    Raises:
        ValueError: for a weight outside 0 to 1, adapters, weights in shards, and ``model_init``; says what to do.
    """
    if not 0 <= weight < 1:
        raise ValueError(
            f"start_weight (--start_weight) is a share of the weights: expected 0 to below 1, got {weight}"
        )
    if not weight:
        return
    remedy = "leave start_weight (--start_weight) out"
    if adapters(model):
        raise ValueError(f"start_weight averages the weights of a model, and LoRA leaves these as they are: {remedy}")
    if any(getattr(state, f"{name}_plugin", None) is not None for name in ("fsdp", "deepspeed")):
        raise ValueError(f"start_weight averages whole weights, and FSDP and DeepSpeed keep shards: {remedy}")
    if has_model_init:
        raise ValueError(f"start_weight averages with the model that is given, and model_init makes others: {remedy}")
