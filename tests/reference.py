"""Independent float64 loops over the formulas: no matrix product, no softmax function of a library."""

import math

import torch


def _cosine(u, v):
    dot = sum(a * b for a, b in zip(u, v, strict=True))
    return dot / math.sqrt(sum(a * a for a in u)) / math.sqrt(sum(b * b for b in v))


def _rows(embeddings):
    return embeddings.double().tolist()


def unsup_loop(embeddings, temperature):
    """The 2B x 2B objective, label i ^ 1, the diagonal left out."""
    rows = _rows(embeddings)
    total = 0.0
    for i in range(len(rows)):
        logits = {j: _cosine(rows[i], rows[j]) / temperature for j in range(len(rows)) if j != i}
        total += math.log(sum(math.exp(logit) for logit in logits.values())) - logits[i ^ 1]
    return total / len(rows)


def sup_loop(embeddings, temperature):
    """Anchors against p0, n0, p1, n1, ...; the label of row i is column 2i."""
    rows = _rows(embeddings)
    anchors = rows[0::3]
    candidates = [row for i, row in enumerate(rows) if i % 3]
    total = 0.0
    for i, anchor in enumerate(anchors):
        logits = [_cosine(anchor, candidate) / temperature for candidate in candidates]
        total += math.log(sum(math.exp(logit) for logit in logits)) - logits[2 * i]
    return total / len(anchors)


def sup_zh_loop(embeddings, temperature):
    """SimCSE-Chinese-Pytorch's simcse_sup.py: rows a0, p0, n0, a1, ...; a and p are each other's label among all."""
    rows = _rows(embeddings)
    losses = []
    for i in range(len(rows)):
        if i % 3 < 2:
            logits = {j: _cosine(rows[i], rows[j]) / temperature for j in range(len(rows)) if j != i}
            label = i + 1 if i % 3 == 0 else i - 1
            losses.append(math.log(sum(math.exp(logit) for logit in logits.values())) - logits[label])
    return sum(losses) / len(losses)


def info_nce_loop(
    anchors,
    positives,
    negatives=None,
    temperature=0.05,
    weight=1.0,
    symmetric=False,
    rows=None,
    keys=None,
    threshold=math.inf,
    focal=None,
    similarities=None,
):
    """The paper's sums written out; negatives are (B, N, d), and keys say which texts are the same.

    With keys a candidate is no negative of a query whose positives include the same text, nor of a query of the same
    text. ``similarities`` are those of the positives, where they are not to be their cosines.
    """
    a, p = _rows(anchors), _rows(positives)
    n = _rows(negatives) if negatives is not None else [[] for _ in a]
    # Without keys every text is another one.
    a_keys, p_keys = [keys[0].tolist(), keys[1].tolist()] if keys else [[(c, i) for i in range(len(a))] for c in "ap"]
    n_keys = keys[2].reshape(len(a), -1).tolist() if keys and negatives is not None else [[None] * len(x) for x in n]
    positive_texts = {text: {text} for text in (*a_keys, *p_keys)}
    for anchor, positive in zip(a_keys, p_keys, strict=True):
        positive_texts[anchor].add(positive)
        if symmetric:
            positive_texts[positive].add(anchor)
    losses = []
    for i in rows if rows is not None else range(len(a)):
        for anchor_is_first in (True, False) if symmetric else (True,):
            query, query_text = (a[i], a_keys[i]) if anchor_is_first else (p[i], p_keys[i])
            others = [(p, p_keys), (a, a_keys)] if symmetric else [(p, p_keys)]
            terms = []  # vector, text, factor
            for j in range(len(a)):
                for vectors, texts in others:
                    if j != i:  # the own two are the query and its positive
                        terms.append((vectors[j], texts[j], 1.0))
                own = weight if i == j else 1.0
                terms += [(vector, text, own) for vector, text in zip(n[j], n_keys[j], strict=True)]
            positive = _cosine(a[i], p[i]) if similarities is None else float(similarities[i])
            positive = positive if focal is None else positive**2
            denominator = math.exp(positive / temperature)
            for vector, text, factor in terms:
                if text not in positive_texts[query_text] and _cosine(query, vector) <= threshold:
                    negative = _cosine(query, vector)
                    negative *= 1 if focal is None else negative + focal
                    denominator += factor * math.exp(negative / temperature)
            losses.append(math.log(denominator) - positive / temperature)
    return sum(losses) / len(losses)


def alignment_loop(embeddings, positives):
    total = 0.0
    for u, v in zip(_rows(embeddings), _rows(positives), strict=True):
        total += 2 - 2 * _cosine(u, v)
    return total / len(embeddings)


def uniformity_loop(embeddings):
    rows = _rows(embeddings)
    values = [math.exp(-2 * (2 - 2 * _cosine(u, v))) for i, u in enumerate(rows) for v in rows[:i]]
    return math.log(sum(values) / len(values))


def finite_difference(function, tensor, step=1e-6):
    """Central differences of a scalar function of a float64 tensor."""
    gradient = torch.zeros_like(tensor)
    for index in range(tensor.numel()):
        values = []
        for sign in (1, -1):
            moved = tensor.clone()
            moved.view(-1)[index] += sign * step
            values.append(float(function(moved)))
        gradient.view(-1)[index] = (values[0] - values[1]) / (2 * step)
    return gradient
