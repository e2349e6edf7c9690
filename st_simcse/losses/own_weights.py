"""The weights that belong to a loss and not to its model: one rule for optimizers, checkpoints and processes."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["own_parameters", "own_weights"]


def own_weights(loss: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """Returns a loss's parameters and buffers by name, without those of the model that the loss may hold.

    Example:
        >>> model, head = nn.Linear(2, 2), nn.BatchNorm1d(2)
        >>> list(own_weights(nn.Sequential(model, head), model))
        ['1.weight', '1.bias', '1.running_mean', '1.running_var', '1.num_batches_tracked']
    """
    of_model = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    tensors = (*loss.named_parameters(), *loss.named_buffers())
    return {name: tensor for name, tensor in tensors if id(tensor) not in of_model}


def own_parameters(loss: nn.Module, model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters among :func:`own_weights` that are trained.

    Example:
        >>> model, head = nn.Linear(2, 2), nn.BatchNorm1d(2)
        >>> len(own_parameters(nn.Sequential(model, head), model))
        2
    """
    weights = own_weights(loss, model).values()
    return [weight for weight in weights if isinstance(weight, nn.Parameter) and weight.requires_grad]
