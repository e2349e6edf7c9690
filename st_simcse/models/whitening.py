"""Whitening of a model's embeddings by a Dense module of ST after the pooling."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import nn

from st_simcse.objective.whitening import Moments, kept_directions, whitening

__all__ = ["check_whitening", "is_whitened", "whiten"]

# The number of batches that encode sorts by length together.
BATCHES_AT_ONCE = 16


def whiten(
    model: SentenceTransformer,
    texts: Iterable[str],
    power: float = 1.0,
    dimensions: float | None = None,
    *,
    prompt: str | None = None,
    batch_size: int = 64,
) -> Dense:
    r"""Appends a linear layer that whitens a model's embeddings, without training.

    .. math:: y = \Lambda^{-p/2} U^\top (x - \mu), \qquad \Sigma = U \Lambda U^\top

    The mean :math:`\mu` and the covariance :math:`\Sigma` are those of the texts' embeddings. Su et al. (2021,
    arXiv:2103.15316, section 3) whiten BERT's embeddings with p = 1 and keep the directions of the largest variance.
    Huang et al. (WhiteningBERT, Findings of EMNLP 2021) whiten averages of layers. A smaller p changes a good model
    less. docs/choosing.md shows measurements of where whitening helps and where it harms.

    The layer is a ``Dense`` module with a bias at the end of the model, before a ``Normalize``. The saved model is
    therefore a plain SentenceTransformer. Training changes the layer too, unless you freeze it:
    ``whiten(model, texts).requires_grad_(False)``. The directions are sorted, so ``truncate_dim=k`` on the full layer
    gives the same embeddings as ``dimensions=k``. Directions in which the embeddings do not vary become 0. A LayerNorm
    leaves at least one such direction.

    The mean and covariance are updated in float64 while the texts are embedded, so a million texts need no more memory
    than a few batches.

    Args:
        model: The model, which is changed in place. Its own ``encode`` embeds the texts, so a model of
            :func:`~st_simcse.fast_encode` may do so in bf16.
        texts: Texts like those that the model will embed. Pass more texts than the model has dimensions, if possible
            several thousand.
        power: p, 0 or more. 1 whitens, 0 only subtracts the mean, and values between whiten partly.
        dimensions: The number of directions of the largest variance to keep, or their share as a number below 1. Keeps
            all if None.
        prompt: The prompt put before every text. If None, the model's default prompt.
        batch_size: The number of texts per forward pass.

    Returns:
        The new module, which is part of the model.

    Raises:
        ValueError: If the model already ends in a linear layer with a bias, there are too few texts for the dimensions,
            the embeddings are all equal, NaN or infinite, or a number is out of range. The model is then unchanged.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> texts = ["A dog runs.", "A cat sleeps.", "Two men sing.", "The train stops."]
        >>> model = tiny_model(texts)
        >>> _ = whiten(model, texts, dimensions=2)
        >>> model.encode(texts).std(0, ddof=1).round(3).tolist()
        [1.0, 1.0]
    """
    if isinstance(texts, str):
        raise ValueError("texts is a single text: pass a list of texts")
    check_whitening(model, power, dimensions)
    end = model.pop(-1) if isinstance(model[-1], Normalize) else None
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


def is_whitened(model: SentenceTransformer) -> bool:
    """Returns whether the model ends in a linear layer with a bias, as a whitened model does."""
    last = next(module for module in reversed(list(model)) if not isinstance(module, Normalize))
    return isinstance(last, Dense) and bool(last.bias) and isinstance(last.activation_function, nn.Identity)


def check_whitening(
    model: SentenceTransformer, power: float = 1.0, dimensions: float | None = None, count: int | None = None
) -> None:
    """Checks what :func:`whiten` would refuse, before any text is embedded.

    Args:
        model: As in :func:`whiten`.
        power: As in :func:`whiten`.
        dimensions: As in :func:`whiten`.
        count: The number of texts, if it is known.

    Raises:
        ValueError: If the model already ends in a linear layer with a bias, a number is out of range, or there are too
            few texts for the dimensions.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> check_whitening(tiny_model(["Two dogs run."]), dimensions=0.5, count=1_000)
    """
    if is_whitened(model):
        raise ValueError(
            "the model already ends in a linear layer with a bias, as a whitened model does. Whiten the model that it "
            "was made from, with another power or other dimensions if you want these."
        )
    with model.truncate_embeddings(None):
        width = model.get_embedding_dimension()
    if width is not None:
        kept_directions(power, dimensions, width, count)


def _moments(model: SentenceTransformer, texts: Iterable[str], prompt: str | None, batch_size: int) -> Moments:
    """Returns the moments of the embeddings before Normalize, in full width."""
    remaining = iter(texts)
    moments: Moments | None = None
    with model.truncate_embeddings(None):
        while some := list(islice(remaining, BATCHES_AT_ONCE * batch_size)):
            embeddings = model.encode(
                some, prompt=prompt, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False
            )
            moments = moments or Moments(embeddings.shape[1])
            moments.add(embeddings)
    if moments is None:
        raise ValueError("there are no texts to whiten with: pass a few thousand texts like those you will embed")
    return moments
