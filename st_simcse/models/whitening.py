"""Whitening of a model's embeddings, as a Dense module of ST's behind the pooling."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import cast

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import nn

from st_simcse.objective.whitening import Moments, whitening

__all__ = ["whiten"]

# Batches that encode sorts by length together.
BATCHES_AT_ONCE = 16


def whiten(
    model: SentenceTransformer,
    texts: Iterable[str],
    power: float = 1.0,
    dimensions: int | None = None,
    *,
    prompt: str | None = None,
    batch_size: int = 64,
) -> Dense:
    r"""Even out the spread of a model's embeddings with a linear layer, without training.

    .. math:: y = \Lambda^{-p/2} U^\top (x - \mu), \qquad \Sigma = U \Lambda U^\top

    The mean :math:`\mu` and the covariance :math:`\Sigma` are those of the texts' embeddings. Su et al. (2021,
    arXiv:2103.15316, section 3) whiten BERT's embeddings with p = 1 and keep the directions of the largest spread;
    Huang et al. (WhiteningBERT, Findings of EMNLP 2021) do so with averages of layers. A smaller p changes a good model
    less. Where whitening helps and where it harms is measured in docs/recipes.md.

    The layer is a ``Dense`` module with a bias. It goes to the end of the model, before a ``Normalize``, so that the
    saved model is a plain SentenceTransformer. Training changes the layer too, unless it is frozen:
    ``whiten(model, texts).requires_grad_(False)``. The directions are sorted, so that ``truncate_dim=k`` of the whole
    layer gives what ``dimensions=k`` gives. Directions in which the embeddings do not vary become 0: a LayerNorm leaves
    one at least.

    Mean and covariance are computed in float64 as the texts come in, so that a million texts take no more memory than a
    few batches.

    Args:
        model: the model, which is changed.
        texts: texts as the model will embed them; more than it has dimensions, several thousand at best.
        power: p, 0 or more: 1 whitens, 0 subtracts the mean alone, and what lies between does so in part.
        dimensions: how many are kept, those of the largest spread; all when left out.
        prompt: put before every text; the model's default prompt when left out.
        batch_size: texts a forward pass.

    Returns:
        The new module, which is part of the model.

    Raises:
        ValueError: for a model that ends in a linear layer with a bias already, fewer texts than dimensions, embeddings
            that do not differ or are not finite, and numbers out of range. The model is left as it was.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> texts = ["A dog runs.", "A cat sleeps.", "Two men sing.", "The train stops."]
        >>> model = tiny_model(texts)
        >>> _ = whiten(model, texts, dimensions=2)
        >>> model.encode(texts).std(0, ddof=1).round(3).tolist()
        [1.0, 1.0]
    """
    if isinstance(texts, str):
        raise ValueError("texts is one text: pass a list of texts")
    _check_not_whitened(model)
    end = cast(nn.Module, model.pop(-1)) if isinstance(model[-1], Normalize) else None
    try:
        moments = _moments(model, texts, prompt, batch_size)
        weight, bias = whitening(moments, power, dimensions)
        layer = Dense(
            weight.shape[1], weight.shape[0], activation_function=nn.Identity(), init_weight=weight, init_bias=bias
        ).to(model.device, model.dtype)
        model.append(layer)
    finally:
        if end is not None:
            model.append(end)
    return layer


def _check_not_whitened(model: SentenceTransformer) -> None:
    last = next(module for module in reversed(list(model)) if not isinstance(module, Normalize))
    if isinstance(last, Dense) and last.bias and isinstance(last.activation_function, nn.Identity):
        raise ValueError(
            "the model ends in a linear layer with a bias, as a whitened model does: whiten the model that it was made "
            "from, with another power or other dimensions if you want these"
        )


def _moments(model: SentenceTransformer, texts: Iterable[str], prompt: str | None, batch_size: int) -> Moments:
    """Of the embeddings before Normalize, in full width."""
    remaining = iter(texts)
    moments: Moments | None = None
    truncate_dim, model.truncate_dim = model.truncate_dim, None
    try:
        while some := list(islice(remaining, BATCHES_AT_ONCE * batch_size)):
            embeddings = model.encode(
                some, prompt=prompt, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False
            )
            moments = moments or Moments(embeddings.shape[1])
            moments.add(embeddings)
    finally:
        model.truncate_dim = truncate_dim
    if moments is None:
        raise ValueError("there are no texts to whiten with: pass some thousand texts as the model will embed them")
    return moments
