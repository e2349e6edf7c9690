"""The embeddings of a teacher, made once and kept beside the texts, in the label column."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Value
from datasets import Sequence as Lists
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import normalize_embeddings
from torch import Tensor

from st_simcse.models.fast_encode import fast_encode
from st_simcse.objective import normalize

__all__ = ["LABEL", "add_teacher_embeddings", "check_teacher_columns", "teacher_embeddings"]

LABEL = "label"
# That are sorted by length and embedded together.
ROWS = 10_000
# As ST's data collator knows them.
_LABELS = ("label", "labels", "score", "scores")


def add_teacher_embeddings(
    dataset: Dataset,
    teacher: SentenceTransformer | Sequence[SentenceTransformer],
    weights: Sequence[float] | None = None,
    batch_size: int = 64,
) -> Dataset:
    """The dataset with another column, ``label``, the teacher's embeddings of its texts.

    They are what :class:`~st_simcse.RankDistillation` and :class:`~st_simcse.GuidedNegatives` need, and for one column
    of texts what ST's MSELoss takes. The teacher reads the texts with its own tokenizer, once: the embeddings lie on
    disk, 4 bytes a number, and no epoch pays again.

    Several teachers make one: their embeddings are scaled to unit length, weighted and put side by side, so that cosine
    similarities are the weighted means of theirs (as RankCSE averages those of two teachers).

    Args:
        dataset: columns of texts.
        teacher: one model or several; their own prompts and lengths apply.
        weights: of several teachers, positive; alike when left out.
        batch_size: texts a forward pass, as :func:`~st_simcse.fast_encode` has it, which embeds them.

    Returns:
        The dataset with a column of float32 lists: (d,) for one column of texts; (columns, d) for more, in their order.
        The column's feature keeps the names of the texts' columns, by which SimCSETrainer knows whose embeddings they
        are.

    Raises:
        ValueError: for a stream, which would be embedded anew in every epoch; for a dataset that has labels already, no
            teacher, and weights that do not fit; for a text whose embedding is zero or not finite.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> texts = ["Two dogs run.", "A cat sleeps."]
        >>> dataset = add_teacher_embeddings(Dataset.from_dict({"sentence": texts}), tiny_model(texts, width=32))
        >>> dataset.column_names, len(dataset[0]["label"])
        (['sentence', 'label'], 32)
    """
    teachers = [fast_encode(one) for one in ([teacher] if isinstance(teacher, SentenceTransformer) else teacher)]
    weights = [1.0] * len(teachers) if weights is None else list(weights)
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"a teacher's embeddings are made once, beforehand, for a datasets.Dataset, got {type(dataset).__name__}: "
            "read the data without streaming"
        )
    if labels := [name for name in dataset.column_names if name in _LABELS]:
        raise ValueError(f"the dataset has labels already: leave the column {labels[0]} out with remove_columns")
    if not teachers or len(weights) != len(teachers) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"pass a teacher, and for several one positive weight each, got {len(teachers)} and {weights}")
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
    feature: Any = Lists(Value("float32", id=json.dumps(columns)), length=width)  # what stays with the column
    feature = feature if len(columns) == 1 else Lists(feature, length=len(columns))
    features = dataset.features.copy()
    features[LABEL] = feature
    return dataset.map(embed, batched=True, batch_size=ROWS, features=features, desc="Embedding by the teacher")


def _check_embedded(parts: Sequence[Tensor], texts: Sequence[str]) -> None:
    for part in parts:
        lengths = part.norm(dim=1)
        for row in (~(lengths.isfinite() & (lengths > 0))).nonzero()[:1]:
            raise ValueError(
                f"a teacher's embedding of the text {texts[row]!r} is zero or not finite, so that nothing is near it: "
                "leave such texts out with dataset.filter, or choose another teacher"
            )


def check_teacher_columns(*datasets: Any) -> None:
    """Whether the texts that a teacher has embedded are those of the datasets, in the order of their columns.

    Args:
        *datasets: Datasets, dicts of them by name, or None; labels of other origin are not looked at.

    Raises:
        ValueError: for columns that were put in another order, renamed, added or left out after
            :func:`add_teacher_embeddings`.

    Example:
        >>> from st_simcse.demo import tiny_model
        >>> dataset = Dataset.from_dict({"anchor": ["Two dogs run."], "positive": ["Dogs run."]})
        >>> dataset = add_teacher_embeddings(dataset, tiny_model(["Two dogs run."]))
        >>> check_teacher_columns(dataset.select_columns(["positive", "anchor", "label"]))
        Traceback (most recent call last):
        ...
        ValueError: the labels are a teacher's embeddings of anchor, positive, and the data has positive, anchor: ...
    """
    for dataset in (one for data in datasets for one in (data.values() if isinstance(data, dict) else [data])):
        feature: Any = (getattr(dataset, "features", None) or {}).get(LABEL)
        while isinstance(feature, Lists):
            feature = feature.feature
        if not (record := getattr(feature, "id", None)):
            continue
        embedded: list[str] = json.loads(record)
        texts = [name for name in dataset.column_names if name not in (*_LABELS, "dataset_name")]
        if embedded != texts:
            raise ValueError(
                f"the labels are a teacher's embeddings of {', '.join(embedded)}, and the data has {', '.join(texts)}: "
                f"select_columns({[*embedded, LABEL]}) restores these; for others leave the column {LABEL} out with "
                "remove_columns and call add_teacher_embeddings again"
            )


def teacher_embeddings(labels: Tensor | None, rows: int, columns: int, counts: Sequence[int] = ()) -> list[Tensor]:
    """The labels of a batch as the teacher's embeddings (B, d) of each column, of unit length, in float32.

    Args:
        labels: (B, d), or (B, columns, d), as :func:`add_teacher_embeddings` makes them.
        rows: B.
        columns: how many the loss has.
        counts: of how many columns the labels may be; of 1 where all columns are views of one text, which share its
            embedding. Of one or of all when left out.

    Raises:
        ValueError: for labels that are missing, of another shape, zero or not finite.
    """
    if labels is None:
        raise ValueError(
            "an option needs the embeddings of a teacher, and the data has no column label: pass "
            "add_teacher_embeddings(dataset, teacher) as train_dataset (--teacher)"
        )
    embedded = labels[:, None] if labels.ndim == 2 else labels
    fits = embedded.ndim == 3 and embedded.is_floating_point() and len(embedded) == rows
    counts = counts or (1, columns)
    if not fits or embedded.shape[1] not in counts:
        count = max(counts)
        texts, shape = ("column", f"({rows}, d)") if count == 1 else ("columns", f"({rows}, {count}, d)")
        raise ValueError(
            f"the labels are not a teacher's embeddings of the {count} {texts} of texts, one row a row: "
            f"expected floats of shape {shape}, got {labels.dtype} of {tuple(labels.shape)}; add_teacher_embeddings "
            "makes them"
        )
    unit = normalize(embedded, "the teacher's embeddings")
    if zero := (~unit.any(-1).all(-1)).nonzero().flatten().tolist():
        raise ValueError(
            f"the teacher's embeddings are zero in row(s) {zero} of {rows}, so that nothing is near these texts: leave "
            "them out, or choose another teacher"
        )
    return list(unit.expand(-1, columns, -1).unbind(1))
