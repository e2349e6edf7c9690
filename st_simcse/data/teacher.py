"""The embeddings of a teacher, computed once and stored in the label column of the texts."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Value
from datasets import Sequence as Lists
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import normalize_embeddings
from torch import Tensor

from st_simcse.data.training_data import LABEL_COLUMNS, TEXT_TYPES
from st_simcse.models.fast_encode import fast_encode
from st_simcse.objective import normalize

__all__ = ["LABEL", "add_teacher_embeddings", "check_teacher_columns", "teacher_embeddings"]

LABEL = "label"
# The number of rows that are sorted by length and embedded together.
ROWS = 10_000


def add_teacher_embeddings(
    dataset: Dataset,
    teacher: SentenceTransformer | Sequence[SentenceTransformer],
    weights: Sequence[float] | None = None,
    batch_size: int = 64,
) -> Dataset:
    """Adds a column ``label`` with the teacher's embeddings of the texts.

    :class:`~st_simcse.RankDistillation` and :class:`~st_simcse.GuidedNegatives` need these embeddings. For one column
    of texts they are also the labels for ST's MSELoss. The teacher reads each text once, with its own tokenizer. The
    embeddings are stored on disk with 4 bytes per number, so training does not compute them again.

    Several teachers are combined into one. Their embeddings are scaled to unit length, weighted and concatenated, so a
    cosine similarity is the weighted mean of the teachers' similarities (RankCSE averages two teachers in this way).

    Args:
        dataset: A Dataset with columns of texts.
        teacher: The teacher model, or several. Each uses its own prompts and maximum length.
        weights: The weights of several teachers, which must be positive. If None, all weights are equal.
        batch_size: The number of texts per forward pass. The texts are embedded with :func:`~st_simcse.fast_encode`.

    Returns:
        The Dataset with a column of float32 lists: (d,) for one column of texts, (columns, d) for several, in their
        order. The column's feature stores the names of the text columns, so SimCSETrainer can check which texts the
        embeddings belong to.

    Raises:
        ValueError: If the dataset is a stream, already has labels or has columns that are not texts, if there is no
            teacher, if the weights do not fit, or if the embedding of a text is zero or not finite.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> texts = ["Two dogs run.", "A cat sleeps."]
        >>> dataset = add_teacher_embeddings(Dataset.from_dict({"sentence": texts}), tiny_model(texts, width=32))
        >>> dataset.column_names, len(dataset[0]["label"])
        (['sentence', 'label'], 32)
    """
    if isinstance(teacher, (str, os.PathLike)):
        raise ValueError(f"teacher is the name {str(teacher)!r}: pass the model, SentenceTransformer({str(teacher)!r})")
    teachers = [fast_encode(one) for one in ([teacher] if isinstance(teacher, SentenceTransformer) else teacher)]
    weights = [1.0] * len(teachers) if weights is None else list(weights)
    if not isinstance(dataset, Dataset):
        raise ValueError(
            "a teacher's embeddings are computed before training and need a datasets.Dataset, got "
            f"{type(dataset).__name__}: read the data without streaming"
        )
    if labels := [name for name in dataset.column_names if name in LABEL_COLUMNS]:
        raise ValueError(f"the dataset already has labels: remove the column {labels[0]} with remove_columns")
    if not teachers or len(weights) != len(teachers) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(
            f"got {len(teachers)} teacher(s) and the weights {weights}: pass at least one teacher, and one positive "
            "weight for each"
        )
    if others := [
        name for name, feature in dataset.features.items() if getattr(feature, "dtype", None) not in TEXT_TYPES
    ]:
        raise ValueError(
            f"a teacher embeds texts, but the column {others[0]!r} is {dataset.features[others[0]]}: put lists of hard "
            "negatives into columns of texts negative_1, negative_2, ..., and remove other columns with remove_columns"
        )
    columns = dataset.column_names
    scales = [math.sqrt(weight / sum(weights)) for weight in weights]

    def embed(batch: dict[str, list[str]]) -> dict[str, Any]:
        texts = [text for name in columns for text in batch[name]]
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False, "convert_to_tensor": True}
        parts = [one.encode(texts, **options).float().cpu() for one in teachers]
        if len(parts) > 1:
            parts = [scale * normalize_embeddings(part) for scale, part in zip(scales, parts, strict=True)]
        _check_embedded(parts, texts)
        embedded = torch.cat(parts, dim=1).numpy()
        if len(columns) == 1:
            return {LABEL: list(embedded)}
        return {LABEL: list(np.stack(np.split(embedded, len(columns)), axis=1))}

    width = sum(one.encode(".", convert_to_tensor=True).shape[-1] for one in teachers)
    feature: Any = Lists(Value("float32", id=json.dumps(columns)), length=width)  # the id stays with the column
    feature = feature if len(columns) == 1 else Lists(feature, length=len(columns))
    features = dataset.features.copy()
    features[LABEL] = feature
    return dataset.map(embed, batched=True, batch_size=ROWS, features=features, desc="Embedding by the teacher")


def _check_embedded(parts: Sequence[Tensor], texts: Sequence[str]) -> None:
    for part in parts:
        lengths = part.norm(dim=1)
        for row in (~(lengths.isfinite() & (lengths > 0))).nonzero()[:1]:
            raise ValueError(
                f"a teacher's embedding of the text {texts[row]!r} is zero or not finite, so it has no similarities: "
                "remove such texts with dataset.filter, or use a different teacher"
            )


def check_teacher_columns(*datasets: Any) -> None:
    """Checks that the teacher's embeddings belong to the text columns of the datasets, in this order.

    Args:
        *datasets: Datasets, dicts of Datasets by name, or None. Labels from other sources are not checked.

    Raises:
        ValueError: If text columns were reordered, renamed, added or removed after :func:`add_teacher_embeddings`.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> dataset = Dataset.from_dict({"anchor": ["Two dogs run."], "positive": ["Dogs run."]})
        >>> dataset = add_teacher_embeddings(dataset, tiny_model(["Two dogs run."]))
        >>> check_teacher_columns(dataset.select_columns(["positive", "anchor", "label"]))
        Traceback (most recent call last):
        ...
        ValueError: the labels are a teacher's embeddings of anchor, positive, but the data has positive, anchor: ...
    """
    for dataset in (one for data in datasets for one in (data.values() if isinstance(data, dict) else [data])):
        feature: Any = (getattr(dataset, "features", None) or {}).get(LABEL)
        while isinstance(feature, Lists):
            feature = feature.feature
        if not (record := getattr(feature, "id", None)):
            continue
        embedded: list[str] = json.loads(record)
        texts = [name for name in dataset.column_names if name not in (*LABEL_COLUMNS, "dataset_name")]
        if embedded != texts:
            raise ValueError(
                f"the labels are a teacher's embeddings of {', '.join(embedded)}, but the data has {', '.join(texts)}: "
                f"restore the columns with select_columns({[*embedded, LABEL]}), or remove the column {LABEL} with "
                "remove_columns and call add_teacher_embeddings again"
            )


def teacher_embeddings(labels: Tensor | None, rows: int, columns: int, counts: Sequence[int] = ()) -> list[Tensor]:
    """Returns the teacher's embeddings of each column from the labels of a batch.

    Args:
        labels: The labels of :func:`add_teacher_embeddings`, (B, d) or (B, columns, d).
        rows: The number of rows, B.
        columns: The number of columns that the loss has.
        counts: The numbers of columns that the labels may have. Labels of one column apply to all columns, which are
            then views of the same text. If empty, one or ``columns``.

    Returns:
        The embeddings of each column, (B, d) float32, with unit length.

    Raises:
        ValueError: If the labels are missing, have a different shape, or are zero or not finite.
    """
    if labels is None:
        raise ValueError(
            "an option needs the embeddings of a teacher, but the data has no column label: pass "
            "add_teacher_embeddings(dataset, teacher) as train_dataset (--teacher)"
        )
    embedded = labels[:, None] if labels.ndim == 2 else labels
    fits = embedded.ndim == 3 and embedded.is_floating_point() and len(embedded) == rows
    counts = counts or (1, columns)
    if not fits or embedded.shape[1] not in counts:
        count = max(counts)
        texts, shape = ("column", f"({rows}, d)") if count == 1 else ("columns", f"({rows}, {count}, d)")
        raise ValueError(
            f"the labels are not a teacher's embeddings of the {count} {texts} of texts: expected floats of shape "
            f"{shape}, got {labels.dtype} of shape {tuple(labels.shape)}; compute them with add_teacher_embeddings"
        )
    unit = normalize(embedded, "the teacher's embeddings")
    if zero := (~unit.any(-1).all(-1)).nonzero().flatten().tolist():
        raise ValueError(
            f"the teacher's embeddings are zero in row(s) {zero} of {rows}, so these texts have no similarities: "
            "remove them, or use a different teacher"
        )
    return list(unit.expand(-1, columns, -1).unbind(1))
