"""The average of a model's weights before and after training, which forgets less than the trained weights."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from st_simcse.models.lora import adapters

__all__ = ["StartAverage", "check_start_weight"]


class StartAverage:
    r"""A copy of a model's weights, to average them with the weights after training.

    .. math:: \theta = \alpha \theta_\text{before} + (1 - \alpha) \theta_\text{after}

    (WiSE-FT: Wortsman et al., CVPR 2022, section 4, arXiv:2109.01903.)

    Args:
        model: The model before training.
        weight: The share :math:`\alpha` of the weights before training, from 0 to 1.

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
        """Replaces the model's weights by the average, computed in float32."""
        for name, parameter in model.named_parameters():
            before = self.before[name].to(parameter.device).float()
            parameter.copy_(before.lerp(parameter.float(), 1 - self.weight))


def check_start_weight(weight: float, model: SentenceTransformer, state: Any, has_model_init: bool) -> None:
    """Checks that the weights before and after training can be averaged.

    Args:
        weight: The share of the weights before training. 0 for no average.
        model: The model to train.
        state: The state of accelerate.
        has_model_init: Whether the trainer makes a model for each trial of a hyperparameter search.

    Raises:
        ValueError: If the weight is below 0, or 1 and above. If the weight is not 0 and the model has adapters or
            sharded weights, or comes from ``model_init``. The message says what to do.
    """
    if not 0 <= weight < 1:
        raise ValueError(
            f"start_weight (--start_weight) must be at least 0 and below 1, got {weight}. It is the share of the "
            "weights before training."
        )
    if not weight:
        return
    remedy = "Leave out start_weight (--start_weight)."
    if adapters(model):
        raise ValueError(f"start_weight averages the weights of a model, but LoRA does not change them. {remedy}")
    if any(getattr(state, f"{name}_plugin", None) is not None for name in ("fsdp", "deepspeed")):
        raise ValueError(f"start_weight averages whole weights, but FSDP and DeepSpeed shard them. {remedy}")
    if has_model_init:
        raise ValueError(
            f"start_weight averages with the weights of the given model, but model_init makes new models. {remedy}"
        )
