"""The plan of ``st-simcse adapt``: profiles of corpus and model, the recipes to try, and the number of rows."""

from __future__ import annotations

import json
import logging
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from tqdm import tqdm

from st_simcse.budget import Pace, Share, share_budget
from st_simcse.choice import Kind
from st_simcse.cli import train
from st_simcse.cli.adapt.corpus import BATCH, sample, write, write_corpus
from st_simcse.cli.adapt.task import PICTURED, Plan, Task, describe
from st_simcse.cli.adapt.timing import STEPS, encoding_seconds, step_seconds
from st_simcse.cli.compare import check_names
from st_simcse.cli.inputs import identities
from st_simcse.cli.runs import changed_inputs, measures, write_json
from st_simcse.data.corpus_profile import CorpusProfile, profile_corpus
from st_simcse.data.lengths import count_longer
from st_simcse.data.readers import texts_of
from st_simcse.evaluation import KNNEvaluator
from st_simcse.models.checkpoints import load_model
from st_simcse.models.model_profile import ModelProfile, profile_model
from st_simcse.shortlist import BEFORE, Candidate, safest, shortlist, training_length
from st_simcse.training.run_folder import LOCK, UNFINISHED

logger = logging.getLogger(__name__)

# The number of texts per dimension in trials of whitening without training.
TEXTS_PER_DIMENSION = 10
# The seconds that a run needs to make, save and load a model.
OVERHEAD = 3.0
_OURS = {"plan.json", "plan.unfinished", "data", "trials", "final", "model", "pictures", "report.md", "report.html"}
_OURS |= {LOCK, UNFINISHED}


def check_folder(folder: Path) -> None:
    """Raises ValueError if the folder has files that adapt did not write."""
    others = sorted(path.name for path in folder.glob("*") if path.name not in _OURS)
    if others:
        raise ValueError(
            f"--output_dir {folder} has {others[0]!r}, which adapt did not write: choose a new folder, or the folder "
            "of an interrupted run of this command"
        )


def make_plan(task: Task) -> Plan:
    """Reads the plan in the folder or makes a new one, and prints it with its cost.

    Raises:
        ValueError: If the plan in the folder has other options, data or models, or for the reasons given at
            :func:`~st_simcse.cli.adapt.run`.
    """
    file = task.folder / "plan.json"
    task.corpus.source()  # raises an error if there is none
    inputs = _inputs(task)
    if file.exists():
        plan = _read(file)
        _check_same(file, plan, task.options, inputs)
    else:
        plan = _new_plan(task, inputs)
        write_json(file, asdict(plan))
    print(describe(plan))
    return plan


def _inputs(task: Task) -> dict[str, str | None]:
    corpus = task.corpus
    source = ["--train_file", corpus.corpus] if corpus.corpus else ["--train_dataset", str(corpus.dataset)]
    teachers = ["--teacher", *task.args.teacher] if task.args.teacher else []
    comparison = task.comparison([*task.model_words, *source, *teachers], [Candidate(BEFORE, "")])
    return identities(comparison.common, comparison.tests)


def _check_same(file: Path, plan: Plan, options: dict[str, Any], inputs: dict[str, str | None]) -> None:
    remedy = "choose another --output_dir, or delete that folder to start again"
    for name in sorted(plan.options.keys() | options.keys()):
        there, here = plan.options.get(name), options.get(name)
        if there != here:
            raise ValueError(
                f"{file} belongs to a run with other options (--{name} was {there!r} and is now {here!r}): pass the "
                f"same options again, or {remedy}"
            )
    if changed := changed_inputs(plan.inputs, inputs):
        raise ValueError(f"{', '.join(changed)} changed since {file} was written: {remedy}")


def _read(file: Path) -> Plan:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Plan(
            **found
            | {
                "dev": {name: (kind, rows) for name, (kind, rows) in found["dev"].items()},
                "corpus": CorpusProfile(**found["corpus"]),
                "model": ModelProfile(**found["model"]),
                "candidates": [Candidate(**candidate) for candidate in found["candidates"]],
                "share": Share(**found["share"]),
            }
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete the folder {file.parent} to start again") from error


def _new_plan(task: Task, inputs: dict[str, str | None]) -> Plan:
    texts = task.corpus.read(drop_duplicates=False)
    model, kind = profile_model(task.args.model_name_or_path, task.pooling)
    corpus = profile_corpus(texts_of(texts))
    dev, measured = _measured(task)
    left, without = write_corpus(task, texts, measured)
    candidates, left_out = _possible(shortlist(corpus, kind, task.args.teacher or []), len(left), kind)
    some = list(sample(left, min(len(left), STEPS * BATCH)))
    length = training_length(lambda limit: count_longer(model, some, limit) / len(some), kind.reads)
    plan = Plan(
        options=task.options,
        inputs=inputs,
        corpus=corpus,
        model=kind,
        length=length,
        texts=len(left),
        measured=without,
        dev=dev,
        candidates=candidates,
        left_out=left_out,
        share=Share(0, 1),
        whitening_rows=0,
        seconds={},
    )
    plan = _with_trials(task, plan, model, left, some, measured) if dev else _without_trials(plan)
    for name, reason in plan.left_out.items():
        logger.warning("the recipe %s is left out: %s", name, reason)
    return plan


def _possible(candidates: list[Candidate], texts: int, model: ModelProfile) -> tuple[list[Candidate], dict[str, str]]:
    """Returns the recipes that this number of texts allows, and the reasons against the others by name."""
    left_out = {candidate.name: obstacle for candidate in candidates if (obstacle := candidate.obstacle(texts, model))}
    return [candidate for candidate in candidates if candidate.name not in left_out], left_out


def _without_trials(plan: Plan) -> Plan:
    logger.warning(
        "adapt cannot choose a recipe without dev data, because none of 25 measures without labels ranks the recipes "
        "well on all corpora (docs/choosing.md). It takes the recipe that was safest in our measurements, and tries no "
        "other. To let it choose, pass a hundred scored pairs (--dev_file), texts with classes (--knn_dev_file), or "
        "titles and texts (--retrieval_dev_file)"
    )
    names = {BEFORE, safest(plan.model)}
    return replace(
        plan,
        candidates=[candidate for candidate in plan.candidates if candidate.name in names],
        left_out={name: reason for name, reason in plan.left_out.items() if name in names},
    )


def _with_trials(
    task: Task, plan: Plan, model: SentenceTransformer, left: Dataset, some: list[str], measured: set[str]
) -> Plan:
    """Returns the plan with rows and costs, and writes the samples of texts to files."""
    encoding = encoding_seconds(model, some)
    once = OVERHEAD + encoding * sum(map(len, measured)) / statistics.mean(map(len, some))
    paces, failed = _paces(task, plan, some, encoding, once)
    share = share_budget(task.budget, [*paces.values()], plan.texts, BATCH)
    rows = min(plan.texts, TEXTS_PER_DIMENSION * plan.model.width)
    _, too_few = _possible([one for one in plan.candidates if one.training], share.rows, plan.model)
    left_out = plan.left_out | {name: f"{told}: pass a larger --budget" for name, told in too_few.items()} | failed
    candidates = [candidate for candidate in plan.candidates if candidate.name not in left_out]
    trained = [candidate.name for candidate in candidates if candidate.training]
    seconds = {
        "trials": share.seeds * sum(paces[name].seconds(share.rows, BATCH) for name in trained),
        # The runs without training share embeddings, so each text is embedded once.
        "other": once + rows * encoding,
        "final": max([once + plan.texts * encoding, *(paces[name].seconds(plan.texts, BATCH) for name in trained)]),
        "report": 4 * min(plan.texts, PICTURED) * encoding,
    }
    write(task.data("sample"), sample(left, share.rows))
    write(task.data("whitening"), sample(left, rows))
    return replace(plan, share=share, whitening_rows=rows, candidates=candidates, left_out=left_out, seconds=seconds)


def _paces(
    task: Task, plan: Plan, some: list[str], encoding: float, once: float
) -> tuple[dict[str, Pace], dict[str, str]]:
    """Returns the pace of each recipe by name, and the reasons why some cannot be trained with this model."""
    teaching = sum(encoding_seconds(load_model(teacher), some) for teacher in task.args.teacher or [])
    paces, failed = {}, {}
    trained = [candidate for candidate in plan.candidates if candidate.training]
    for candidate in tqdm(trained, desc="timing a few steps", unit="recipe"):
        row = encoding * bool(candidate.power) + teaching * ("--teacher" in candidate.training)
        try:
            paces[candidate.name] = Pace(step_seconds(task, plan.length, candidate, some), row, once)
        except Exception as error:  # another recipe may work
            failed[candidate.name] = f"{type(error).__name__}: {error}"
    return paces, failed


def _measured(task: Task) -> tuple[dict[str, tuple[Kind, int]], set[str]]:
    """Returns the kind and number of rows of each dev column, and all texts of the dev and test data."""
    comparison = task.comparison(task.model_words, [Candidate(BEFORE, "")])
    data_args = train.parse_train(comparison.common)[1]
    pairs: list[Any] = [*train.pair_evaluators(data_args)]
    check_names(pairs)
    has_dev = bool(data_args.dev_file or data_args.dev_dataset)
    found = measures(comparison.tests)
    dev = {evaluator.name: evaluator for evaluator in pairs[:has_dev]}
    dev |= {measure.name: measure.evaluator for measure in found if measure.split == "dev"}
    texts: set[str] = set()
    for evaluator in [*pairs, *(measure.evaluator for measure in found)]:
        for one in getattr(evaluator, "evaluators", [evaluator]):  # averages have several
            texts.update(*_columns(one))
    return {name: (_kind(evaluator), len(_columns(evaluator)[0])) for name, evaluator in dev.items()}, texts


def _kind(evaluator: Any) -> Kind:
    if isinstance(evaluator, EmbeddingSimilarityEvaluator):
        return "pairs"
    return "classes" if isinstance(evaluator, KNNEvaluator) else "queries"


def _columns(evaluator: Any) -> list[list[str]]:
    """Returns the columns of texts of an evaluator. The first column has one text for each row that is scored."""
    columns = (getattr(evaluator, name, None) for name in ("sentences1", "sentences2", "texts", "queries", "corpus"))
    return [column for column in columns if isinstance(column, list)]
