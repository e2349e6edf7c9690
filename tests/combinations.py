"""Options x wrappers x samplers x processes x precisions: what each combination should do, and whether it does.

``python -m tests.combinations`` tries them all and prints how many are right and how many are refused. A combination
is right if some steps of training end with the weights of a loop that knows nothing of the package: an oracle that
goes through the softmax's terms text by text, embeds every column once, steps along the averaged, clipped gradient,
and is fed the very batches that the trainer drew. Dropout is off, so that both see the same embeddings. It is refused
if the package says so when loss or trainer is made, and :func:`refusal` expects it to.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from datasets import Dataset
from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss, Matryoshka2dLoss, MatryoshkaLoss
from torch import Tensor, nn

from conftest import SENTENCES
from st_simcse import (
    AngularMargin,
    DimensionContrast,
    DropoutFreeNegatives,
    FocalMargin,
    GuidedNegatives,
    HardnessWeighting,
    LengthGroupedBatchSampler,
    MaskedLanguageModel,
    MomentumQueue,
    OwnNegativeWeight,
    RankConsistency,
    RankDistillation,
    SharedLayers,
    SimCSETrainer,
    SimCSETrainingArguments,
    SimilarityThreshold,
    SupSimCSELoss,
    UnsupSimCSELoss,
    whiten,
)
from st_simcse.demo import tiny_model
from st_simcse.losses import OPTIONS
from tests.inputs import without_dropout

BATCH = 4
LEARNING_RATE = 0.05
WIDTH = 32
TEMPERATURE = 0.1

# An anchor with two positives, and a text that is one row's anchor and another's positive.
ANCHORS = [f"{first} {second}" for first in SENTENCES for second in SENTENCES][:21] + [SENTENCES[0]] * 2
POSITIVES = [*ANCHORS[1:21], *SENTENCES[5:8]]
NEGATIVES = [*ANCHORS[2:21], *SENTENCES[1:5]]

# How the matrix uses each option; the oracle has to know what it means.
EXAMPLES = {
    FocalMargin: FocalMargin(0.2),
    AngularMargin: AngularMargin(0.1),
    HardnessWeighting: HardnessWeighting(2.0),
    SimilarityThreshold: SimilarityThreshold(0.9),
    OwnNegativeWeight: OwnNegativeWeight(2.0),
    GuidedNegatives: GuidedNegatives(0.6, "relative"),
    MomentumQueue: MomentumQueue(6),
    DropoutFreeNegatives: DropoutFreeNegatives(),
    MaskedLanguageModel: MaskedLanguageModel(0.5),
    RankDistillation: RankDistillation(0.5, temperature=0.2),
    RankConsistency: RankConsistency(5.0, temperature=0.2),
    DimensionContrast: DimensionContrast(0.5, temperature=0.5),
    SharedLayers: SharedLayers(1),
}
if unknown := [option.__name__ for option in OPTIONS if option not in EXAMPLES]:
    raise NotImplementedError(f"no example and no oracle for {', '.join(unknown)}: see EXAMPLES and Oracle")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "plain": {},
    "projection_head": {"projection_head": True},
    "mask_duplicates": {"mask_duplicates": False},
    "symmetric": {"symmetric": True},
    "directions": {"directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")},
    "per_direction": {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
    # Shared layers are a factor of their own, so that every other option is tried with them.
    **{option.__name__: {"options": [EXAMPLES[option]]} for option in OPTIONS if option is not SharedLayers},
}


@dataclass(frozen=True)
class Case:
    """One combination. ``processes`` are one, two, or two whose rows are gathered."""

    loss: str
    option: str
    wrapper: str
    sampler: str
    processes: str
    precision: str
    cached: bool
    step: str
    layers: str
    start: str

    @property
    def options(self) -> dict[str, Any]:
        options = OBJECTIVES[self.option] | {"temperature": TEMPERATURE}
        if self.layers == "shared":
            options["options"] = [*options.get("options", []), EXAMPLES[SharedLayers]]
        if self.cached:
            options["mini_batch_size"] = 4 if self.layers == "shared" else 3
        return options | ({"gather_across_devices": True} if self.processes == "2 gathered" else {})

    @property
    def accumulation(self) -> int:
        return 2 if self.step == "accumulation" else 1


FACTORS = {
    "loss": ["unsupervised", "supervised"],
    "option": list(OBJECTIVES),
    "wrapper": ["none", "MatryoshkaLoss", "Matryoshka2dLoss", "AdaptiveLayerLoss"],
    "sampler": ["batch", "no_duplicates", "length-grouped", "multi-dataset"],
    "processes": ["1", "2", "2 gathered"],
    "precision": ["float32", "bf16"],
    "cached": [False, True],
    "step": ["plain", "accumulation", "checkpointing", "compile"],
    "layers": ["all", "shared"],
    "start": ["as it was", "whitened", "averaged"],
}


def cases() -> list[Case]:
    """Every two values of two factors together at least once; what is to be refused, with nothing else."""
    rng = random.Random(0)
    right: dict[Case, None] = {}
    covered: set[tuple[Any, ...]] = set()
    for one, other in itertools.combinations(FACTORS, 2):
        for pair in itertools.product(FACTORS[one], FACTORS[other]):
            fixed = dict(zip((one, other), pair, strict=True))
            drawn = [{name: rng.choice(values) for name, values in FACTORS.items()} | fixed for _ in range(300)]
            candidates = [case for case in (Case(**values) for values in drawn) if not refusal(case)]
            if candidates and (one, other, *pair) not in covered:
                best = max(candidates, key=lambda case: len(_pairs(case) - covered))
                covered |= _pairs(best)
                right[best] = None
    return [*right, *_refused()]


def _refused() -> list[Case]:
    """One to three values that are refused together, all else being the simplest; none of them less is refused."""
    simplest = {name: values[0] for name, values in FACTORS.items()}
    refused: list[dict[str, Any]] = []
    for number in (1, 2, 3):
        for names in itertools.combinations(FACTORS, number):
            for chosen in itertools.product(*(FACTORS[name][1:] for name in names)):
                values = dict(zip(names, chosen, strict=True))
                case = Case(**(simplest | values))
                if refusal(case) and not any(less.items() <= values.items() for less in refused):
                    refused.append(values)
    return [Case(**(simplest | values)) for values in refused]


def _pairs(case: Case) -> set[tuple[Any, ...]]:
    return {(one, other, getattr(case, one), getattr(case, other)) for one, other in itertools.combinations(FACTORS, 2)}


def train(case: Case, folder: str | Path) -> tuple[list[list[list[dict[str, Tensor]]]], dict[str, Tensor], nn.Module]:
    """Train, and return the batches of every process, the weights after it, and the loss as it was before."""
    model = _model(case.start)
    torch.manual_seed(0)
    loss = (UnsupSimCSELoss if case.loss == "unsupervised" else SupSimCSELoss)(model, **case.options)
    _mask_every_third_token(loss)
    before = copy.deepcopy(loss)
    wrapped = _wrap(case, model, loss)
    batches: list[list[dict[str, Tensor]]] = []
    wrapped.register_forward_pre_hook(lambda _, inputs: batches.append(_copy(inputs[0])))
    sampler = {"no_duplicates": "no_duplicates", "length-grouped": LengthGroupedBatchSampler}.get(case.sampler)
    arguments = SimCSETrainingArguments(
        str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=case.accumulation,
        gradient_checkpointing=case.step == "checkpointing",
        torch_compile=case.step == "compile",
        torch_compile_backend=_backend(case) if case.step == "compile" else None,
        batch_sampler=sampler or "batch_sampler",
        bf16=case.precision == "bf16",
        learning_rate=LEARNING_RATE,
        start_weight=0.25 if case.start == "averaged" else 0.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=1.0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = SimCSETrainer(model=model, args=arguments, train_dataset=_data(case), loss=wrapped)
    trainer.train()
    everyone = [batches]
    if dist.is_initialized():
        everyone = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, batches)
    after = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if loss.projection_head is not None:
        after |= {f"head.{name}": tensor.detach() for name, tensor in loss.projection_head.state_dict().items()}
    return everyone, after, before


def _backend(case: Case) -> str:
    """In two processes one that only traces the graphs, which halves the minutes of compiling."""
    return "aot_eager" if case.processes == "1" else "eager"


def check(case: Case, folder: str | Path) -> str | None:
    """None if the combination is right, else the message with which it was refused.

    Raises:
        AssertionError: if it is wrong, or refused without being expected to, or not refused in spite of it.
    """
    expected = refusal(case)
    try:
        batches, after, before = train(case, folder)
    except ValueError as error:
        assert expected is not None, f"{case}: refused: {error}"
        assert expected in str(error), f"{case}: refused otherwise than expected: {error}"
        return str(error)
    assert expected is None, f"{case}: not refused, expected {expected!r}"
    _check_batches(case, batches)
    start, weights = _replay(case, batches, before)
    for name, tensor in weights.items():
        moved, should_move = after[name] - start[name], tensor - start[name]
        if case.start == "averaged" and not name.startswith("head."):
            should_move = 0.75 * should_move
        if not tensor.is_floating_point():
            continue
        if case.precision == "float32":
            # A whitening scales up the directions of small spread, and their rounding.
            tolerance = (1e-4 if case.start == "whitened" else 2e-5) + 2e-3 * should_move.abs().max()
            assert (moved - should_move).abs().max() < tolerance, (case, name, (moved - should_move).abs().max())
        elif should_move.norm() > 1e-3:
            # Rounding to bf16 turns a step's direction by some percents, and by more behind a whitening, which
            # subtracts the mean: of the last layer, where AdaptiveLayerLoss trains others too.
            least = 0.8 if case.start == "whitened" else 0.97
            cosine = F.cosine_similarity(moved.flatten(), should_move.flatten(), dim=0)
            assert cosine > least, (case, name, cosine)
            longest = 1.25 if case.start == "whitened" else 1.1
            assert 1 / longest < moved.norm() / should_move.norm() < longest, (case, name)
    return None


def refusal(case: Case) -> str | None:
    """Part of the message with which a combination has to be refused, or None if it has to be right."""
    options = [option for option in OPTIONS if option.__name__ == case.option]
    options += [SharedLayers] if case.layers == "shared" else []
    loss = "UnsupSimCSELoss" if case.loss == "unsupervised" else "SupSimCSELoss"
    layers = case.wrapper in ("AdaptiveLayerLoss", "Matryoshka2dLoss")
    dimensions = case.wrapper in ("MatryoshkaLoss", "Matryoshka2dLoss")
    for applies, name in (
        (True, loss),
        (case.cached, "mini_batch_size"),
        (layers, "AdaptiveLayerLoss"),
        (dimensions, "MatryoshkaLoss"),
    ):
        for option in options:
            if applies and name in getattr(option, "incompatible", ()):
                return f"{option.__name__} cannot be combined with {name}"
    if layers and case.cached:
        return "Omit mini_batch_size"
    if layers and case.step == "compile" and case.processes != "1":
        return "Omit torch_compile"
    if dimensions and case.option == "projection_head":
        return "Omit projection_head"
    return None


@functools.cache
def _made(start: str) -> Any:
    model = tiny_model(SENTENCES, width=WIDTH).to("cpu")
    if start == "whitened":
        whiten(model, [f"{first} {second}" for first in SENTENCES for second in SENTENCES], power=0.25)
    return model


def _model(start: str) -> Any:
    return without_dropout(copy.deepcopy(_made(start)).train())


def _data(case: Case) -> Dataset | dict[str, Dataset]:
    columns = {"anchor": ANCHORS, "positive": POSITIVES, "negative": NEGATIVES}
    if case.loss == "unsupervised":
        columns = {"sentence": ANCHORS}
    option = next((option for option in OPTIONS if option.__name__ == case.option), None)
    if getattr(option, "needs_teacher", False):
        ids = zip(*(_texts(_made("as it was").preprocess(texts)) for texts in columns.values()), strict=True)
        taught = [[_taught(text).tolist() for text in row] for row in ids]
        columns["label"] = [row[0] if len(row) == 1 else row for row in taught]
    if case.sampler != "multi-dataset":
        return Dataset.from_dict(columns)
    cut = 9  # the first data set is the smaller one
    parts = {"first": slice(0, cut), "second": slice(cut, None)}
    return {part: Dataset.from_dict({k: v[rows] for k, v in columns.items()}) for part, rows in parts.items()}


def _wrap(case: Case, model: Any, loss: nn.Module) -> nn.Module:
    dims = [WIDTH, WIDTH // 2]
    # The wrapper's own divergence is a mean over each process's rows, which with unequal numbers is not that of all.
    layers = {"n_layers_per_step": -1} | ({"kl_temperature": 0.0} if case.processes == "2 gathered" else {})
    if case.wrapper == "MatryoshkaLoss":
        return MatryoshkaLoss(model, loss, dims, matryoshka_weights=[1.0, 0.5])
    if case.wrapper == "Matryoshka2dLoss":
        return Matryoshka2dLoss(model, loss, dims, n_dims_per_step=-1, **layers)
    if case.wrapper == "AdaptiveLayerLoss":
        return AdaptiveLayerLoss(model, loss, **layers)
    return loss


def _copy(features: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{name: value.clone() for name, value in column.items() if isinstance(value, Tensor)} for column in features]


def _mask_every_third_token(loss: Any) -> None:
    if "masked_language_model" in loss.terms:
        loss.terms["masked_language_model"].collator.torch_mask_tokens = _masked


def _masked(ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    chosen = torch.arange(ids.shape[1]) % 3 == 1
    chosen = chosen & (ids > 4)  # special tokens come first in the vocabulary
    return ids.masked_fill(chosen, 4), ids.masked_fill(~chosen, -100)


def _taught(ids: tuple[int, ...]) -> Tensor:
    """What a teacher knows of a text."""
    seed = sum(token * 31**place for place, token in enumerate(ids)) % 2**32
    return torch.randn(5, generator=torch.Generator().manual_seed(seed))


def _check_batches(case: Case, batches: list[list[list[dict[str, Tensor]]]]) -> None:
    """No batch too large, no row twice, as many steps in every process, and hardly a row left out."""
    assert len({len(own) for own in batches}) == 1, (case, [len(own) for own in batches])
    rows = Counter()
    for own in batches:
        for columns in own:
            assert 1 <= len(columns[0]["input_ids"]) <= BATCH, (case, len(columns[0]["input_ids"]))
            rows.update(zip(*map(_texts, columns), strict=True))
    model = _model(case.start)
    data = _data(case)
    wanted = Counter()
    for part in data.values() if isinstance(data, dict) else [data]:
        names = [name for name in part.column_names if name != "label"]
        wanted.update(zip(*(_texts(model.preprocess(part[name][:])) for name in names), strict=True))
    assert rows <= wanted, (case, rows - wanted)
    assert sum(rows.values()) > 0.6 * sum(wanted.values()), (case, sum(rows.values()))


def _texts(column: dict[str, Tensor]) -> list[tuple[int, ...]]:
    pairs = zip(column["input_ids"], column["attention_mask"].bool(), strict=True)
    return [tuple(ids[mask].tolist()) for ids, mask in pairs]


def _replay(
    case: Case, batches: list[list[list[dict[str, Tensor]]]], before: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights before and after steps of gradient descent along the oracle's gradients."""
    model = _model(case.start)
    oracles = [Oracle(model, case, before)]
    gathered = case.processes == "2 gathered"
    oracles += [Oracle(model, case, before, oracles[0]) for _ in batches[1:] if not gathered]
    losses = [_wrap(case, model, oracle) for oracle in oracles]
    parameters = list(dict.fromkeys(p for oracle in oracles for p in oracle.parameters() if p.requires_grad))
    head = oracles[0].head

    def weights() -> dict[str, Tensor]:
        named = dict(model.state_dict()) | {f"head.{n}": t for n, t in (head.state_dict().items() if head else ())}
        return {name: tensor.detach().clone() for name, tensor in named.items()}

    start = weights()
    count = len(batches[0])
    for begin in range(0, count, case.accumulation):
        micro_batches = range(begin, min(begin + case.accumulation, count))
        for parameter in parameters:
            parameter.grad = None
        for oracle in oracles:
            oracle.is_first_of_step = True
        for micro_batch in micro_batches:
            together = [own[micro_batch] for own in batches]
            sizes = [len(columns[0]["input_ids"]) for columns in together]
            together = [_concatenate(together)] if gathered else together
            for oracle, own_size in zip(oracles, [sizes] if gathered else [[size] for size in sizes], strict=True):
                oracle.sizes = own_size
            for loss, oracle, columns in zip(losses, oracles, together, strict=True):
                with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
                    value = loss(_copy(columns), None)
                    value = value + oracle.masked_language_model(columns)
                (value / len(micro_batches) / len(together)).backward()
                oracle.enqueue(columns)
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        norm = torch.sqrt(sum((grad.double() ** 2).sum() for grad in grads))
        with torch.no_grad():
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter -= LEARNING_RATE * min(1.0, float(1 / (norm + 1e-6))) * grad
    return start, weights()


def _concatenate(parts: list[list[dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
    columns = []
    for column in zip(*parts, strict=True):
        width = max(part["input_ids"].shape[1] for part in column)
        columns.append(
            {
                name: torch.cat([F.pad(part[name], (0, width - part[name].shape[1])) for part in column])
                for name in column[0]
            }
        )
    return columns


class Oracle(nn.Module):
    """The loss as its definition says it, a row and a term at a time, in float64."""

    def __init__(self, model: Any, case: Case, loss: Any, first: Oracle | None = None) -> None:
        super().__init__()
        self.model, self.case = model, case
        self.head = first.head if first else copy.deepcopy(loss.projection_head)
        self.mlm_head = None
        if "masked_language_model" in loss.terms:
            self.mlm_head = first.mlm_head if first else copy.deepcopy(loss.terms["masked_language_model"].head)
            for module in self.mlm_head.modules() if not first else ():
                if isinstance(module, nn.Linear) and module.out_features == model.tokenizer.vocab_size:
                    module.weight = model[0].model.get_input_embeddings().weight
        self.follower = [copy.deepcopy(model).eval()]
        self.queued: list[tuple[Tensor, tuple[int, ...]]] = []
        self.is_first_of_step = True
        self.sizes: list[int] = []  # how many rows are of each process

    def forward(self, features: list[dict[str, Tensor]], labels: None = None) -> Tensor:
        texts = [_texts(column) for column in features]
        embedded = [self.model(column)["sentence_embedding"] for column in features]
        embedded = [self.head(rows) if self.head else rows for rows in embedded]
        if self.case.loss == "unsupervised":
            embedded, texts = embedded * (2 // len(embedded)), texts * (2 // len(texts))
        with torch.autocast("cpu", enabled=False):
            embedded = [rows.double() for rows in embedded]
            unit = [F.normalize(rows, dim=1) for rows in embedded]
            terms = self._of_processes(embedded if self.case.option == "DimensionContrast" else unit, texts)
            return self._softmax(unit, texts) + terms

    def _of_processes(self, embedded: list[Tensor], texts: list[list[tuple[int, ...]]]) -> Tensor:
        """The mean over the processes of what each adds for its own rows."""
        terms = {
            "RankDistillation": self._unlike_the_teacher,
            "RankConsistency": self._unlike_each_other,
            "DimensionContrast": self._alike_dimensions,
        }
        if self.case.option not in terms:
            return torch.zeros(())
        total, begin = torch.zeros(()), 0
        for size in self.sizes:
            rows = slice(begin, begin + size)
            term = terms[self.case.option]
            total = total + term([column[rows] for column in embedded], [column[rows] for column in texts])
            begin += size
        return total / len(self.sizes)

    def _unlike_the_teacher(self, embedded: list[Tensor], texts: list[list[tuple[int, ...]]]) -> Tensor:
        option, total = EXAMPLES[RankDistillation], torch.zeros(())
        taught = [[F.normalize(_taught(text).double(), dim=0) for text in column] for column in texts]
        count = len(embedded[0])
        for i in range(count):
            ranked = [j for j in range(count) if j != i]
            ranked.sort(key=lambda j, i=i: float(taught[0][i] @ taught[1][j]), reverse=True)
            scores = [embedded[0][i] @ embedded[1][j] / option.temperature for j in ranked]
            for place, score in enumerate(scores):
                total = total + (torch.stack(scores[place:]).logsumexp(0) - score) / len(scores)
        return option.weight * total / count

    def _alike_dimensions(self, embedded: list[Tensor], texts: list[list[tuple[int, ...]]]) -> Tensor:
        option, total = EXAMPLES[DimensionContrast], torch.zeros(())
        first, second = (
            [(dim - dim.mean()) / (dim.var(unbiased=False) + 1e-5).sqrt() for dim in column.T]
            for column in embedded[:2]
        )
        for number, dim in enumerate(first):
            scores = torch.stack([(dim * other).mean() for other in second]) / option.temperature
            total = total + (scores.logsumexp(0) - scores[number]) / len(first)
        return option.weight * total

    def _unlike_each_other(self, embedded: list[Tensor], texts: list[list[tuple[int, ...]]]) -> Tensor:
        option, total = EXAMPLES[RankConsistency], torch.zeros(())
        first, second = embedded
        for i in range(len(first)):
            views = [
                (query @ docs.T / option.temperature).softmax(0)
                for query, docs in ((first[i], second), (second[i], first))
            ]
            for view in views:
                total = total + (view * (view / (sum(views) / 2)).log()).sum() / 2
        return option.weight * total / len(first)

    def _softmax(self, embedded: list[Tensor], texts: list[list[tuple[int, ...]]]) -> Tensor:
        rows = range(len(texts[0]))
        names = ["anchor", "positive", *["negative"] * (len(texts) - 2)]
        candidates = [
            ((name, i), vectors[i], words[i])
            for name, vectors, words in zip(names, embedded, texts, strict=True)
            for i in rows
        ]
        candidates += [(("queued", i), vector, words) for i, (vector, words) in enumerate(self.queued)]
        pairs = {
            "anchor": list(zip(texts[0], texts[1], strict=True)),
            "positive": list(zip(texts[1], texts[0], strict=True)),
        }
        if self.case.option in ("symmetric", "directions"):  # the softmaxes of both sides have both sides' texts
            pairs = dict.fromkeys(pairs, pairs["anchor"] + pairs["positive"])
        losses = []
        for row, softmax in itertools.product(rows, self._softmaxes()):
            terms, positives = [], []
            wanted = self._teachers_similarity(texts[0][row], texts[1][row])
            for side, compared in softmax:
                index, target = (0, ("positive", row)) if side == "anchor" else (1, ("anchor", row))
                query, text = embedded[index][row], texts[index][row]
                friends = {text, *(right for left, right in pairs[side] if left == text)}
                own_document = ("negative", row) if len(softmax) > 1 and side == "positive" else None
                for place, vector, words in candidates:
                    if place[0] not in compared or place in ((side, row), own_document):
                        continue
                    # What is queued is wider than what a wrapper has truncated.
                    similarity = query @ F.normalize(vector[: len(query)], dim=0)
                    if place == target:
                        positives.append(self._logit(similarity, is_positive=True))
                        terms.append(positives[-1])
                    elif self.case.option == "GuidedNegatives" and (
                        self._teachers_similarity(text, words) > wanted - 0.6 * abs(wanted)
                    ):
                        continue
                    elif not self._is_left_out(similarity, words in friends):
                        terms.append(self._logit(similarity, is_positive=False, is_own=place == ("negative", row)))
            losses.append(torch.stack(terms).logsumexp(0) - positives[0])
        return torch.stack(losses).mean()

    @staticmethod
    def _teachers_similarity(first: tuple[int, ...], second: tuple[int, ...]) -> float:
        return float(F.cosine_similarity(_taught(first).double(), _taught(second).double(), dim=0))

    def _softmaxes(self) -> list[list[tuple[str, set[str]]]]:
        """Of a row: each softmax with its queries, and with what these are compared."""
        docs = {"positive", "negative", "queued"}
        return {
            "symmetric": [[("anchor", docs | {"anchor"})], [("positive", docs | {"anchor"})]],
            "directions": [[("anchor", docs | {"anchor"}), ("positive", docs | {"anchor"})]],
            "per_direction": [[("anchor", docs)], [("positive", {"anchor"})]],
        }.get(self.case.option, [[("anchor", docs)]])

    def _is_left_out(self, similarity: Tensor, is_friend: bool) -> bool:
        option = self.case.option
        return (is_friend and option != "mask_duplicates") or (option == "SimilarityThreshold" and similarity > 0.9)

    def _logit(self, similarity: Tensor, is_positive: bool, is_own: bool = False) -> Tensor:
        option, logit = self.case.option, similarity / TEMPERATURE
        if option == "FocalMargin":
            logit = logit * (similarity if is_positive else similarity + 0.2)
        if option == "AngularMargin" and is_positive:
            logit = torch.cos(torch.acos(similarity.clamp(max=1 - 1e-12)) + 0.1) / TEMPERATURE
        if option == "HardnessWeighting" and not is_positive and not is_own:
            logit = logit + 2.0 * similarity.detach()
        if option == "OwnNegativeWeight" and is_own:
            logit = logit + math.log(2.0)
        return logit

    def masked_language_model(self, columns: list[dict[str, Tensor]]) -> Tensor:
        if self.mlm_head is None:
            return torch.zeros(())
        total = torch.zeros(())
        for column in columns:
            ids, labels = _masked(column["input_ids"])
            hidden = self.model[0].model(input_ids=ids, attention_mask=column["attention_mask"]).last_hidden_state
            (head,) = self.mlm_head.children()
            scores = head(hidden).float()
            total = total + F.cross_entropy(scores[labels != -100], labels[labels != -100]) / len(columns)
        return EXAMPLES[MaskedLanguageModel].weight * total

    @torch.no_grad()
    def enqueue(self, columns: list[dict[str, Tensor]]) -> None:
        if self.case.option != "MomentumQueue":
            return
        (follower,) = self.follower
        positives = columns[min(1, len(columns) - 1)]
        if self.is_first_of_step:
            step = 0.005 if self.queued else 1.0
            for mine, theirs in zip(follower.parameters(), self.model.parameters(), strict=True):
                mine += step * (theirs - mine)
        self.is_first_of_step = False
        with torch.autocast("cpu", torch.bfloat16, enabled=self.case.precision == "bf16"):
            rows = follower(dict(positives))["sentence_embedding"]
        rows = F.normalize(rows.double(), dim=1)
        self.queued = [*zip(rows, _texts(positives), strict=True), *self.queued][: EXAMPLES[MomentumQueue].size]


def main() -> None:
    """Check every case, or with several processes those that need them."""
    results: Counter[str] = Counter()
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    for start in FACTORS["start"]:
        _made(start)  # before there is a process group, after which rank 0 alone saves models
    for case in cases():
        if several == (case.processes == "1"):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                refused = check(case, folder)
                result = "refused" if refused else "right"
                print(f"{result}: {case} {refused or ''}", flush=True)
            except Exception:
                result = "wrong"
                print(f"wrong: {case}\n{traceback.format_exc()}", flush=True)
            results[result] += 1
    print(dict(results), flush=True)
    if several:
        dist.destroy_process_group()
    sys.exit(bool(results["wrong"]))


if __name__ == "__main__":
    main()
