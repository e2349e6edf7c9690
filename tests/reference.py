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


def info_nce_loop(anchors, positives, negatives=None, temperature=0.05, weight=1.0, symmetric=False, rows=None):
    """The paper's sums written out; negatives are (B, N, d)."""
    a, p = _rows(anchors), _rows(positives)
    n = _rows(negatives) if negatives is not None else [[] for _ in a]
    directions = [(a, p), (p, a)] if symmetric else [(a, p)]
    losses = []
    for i in rows if rows is not None else range(len(a)):
        for queries, keys in directions:
            denominator = sum(math.exp(_cosine(queries[i], key) / temperature) for key in keys)
            if symmetric:
                denominator += sum(
                    math.exp(_cosine(queries[i], query) / temperature) for j, query in enumerate(queries) if j != i
                )
            for j, own in enumerate(n):
                factor = weight if i == j else 1.0
                denominator += sum(factor * math.exp(_cosine(queries[i], key) / temperature) for key in own)
            losses.append(math.log(denominator) - _cosine(queries[i], keys[i]) / temperature)
    return sum(losses) / len(losses)


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
