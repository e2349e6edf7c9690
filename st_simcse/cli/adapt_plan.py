"""The plan of ``st-simcse adapt``: what corpus and model are, which recipes are tried, and on how many rows."""

from __future__ import annotations

import json
import logging
import random
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from tqdm import tqdm
from transformers import TrainerCallback

from st_simcse.budget import Pace, Share, share_budget, shown_duration
from st_simcse.choice import Kind
from st_simcse.cli import train
from st_simcse.cli.compare import Comparison, parse_comparison
from st_simcse.cli.inputs import identities
from st_simcse.cli.runs import changed_inputs, measures, silence
from st_simcse.data.corpus_profile import CorpusProfile, profile_corpus
from st_simcse.data.lengths import count_longer
from st_simcse.data.readers import SentenceReader
from st_simcse.evaluation import KNNEvaluator
from st_simcse.models.checkpoints import load_model
from st_simcse.models.model_profile import ModelProfile, profile_model
from st_simcse.shortlist import BEFORE, Candidate, safest, shortlist, training_length
from st_simcse.training.run_folder import LOCK, UNFINISHED

logger = logging.getLogger(__name__)

# Whether held-out texts of the corpus, without labels, tell which recipe is best. Measured in docs/recipes.md.
CHOOSES_WITHOUT_LABELS = False

BATCH = 64
LEAST_TEXTS = 2 * BATCH
CALIBRATION_STEPS = 3
# Texts for a whitening that is tried without training, a dimension.
TEXTS_PER_DIMENSION = 10
# To choose by without labels, and at most a fifth of the texts.
HELD_OUT = 1000
# Seconds in which a process starts and imports the libraries.
START = 15.0
_OURS = {"plan.json", "data", "trials", "final", "model", "pictures", "report.md", "report.html", LOCK, UNFINISHED}


@dataclass(frozen=True)
class Task:
    """What the command was asked for.

    Args:
        args: the command's own options.
        corpus: where the texts are.
        options: all of them but the folder, which may be moved, by name; without those that were left out.
        measured: those of compare that say what is measured, as words.
        budget: seconds.
        command: the whole command line.
    """

    args: Any
    corpus: Any
    options: dict[str, Any]
    measured: list[str]
    budget: float
    command: list[str]

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def pooling(self) -> Any:
        return None if self.args.pooling == "as saved" else self.args.pooling

    def data(self, name: str) -> Path:
        """A file of texts that the command writes."""
        return self.folder / "data" / f"{name}.jsonl"

    @property
    def model_words(self) -> list[str]:
        """The options of train that say which model it is."""
        pooling = [] if self.pooling is None else ["--pooling", self.pooling]
        return ["--model_name_or_path", self.args.model_name_or_path, *pooling]

    def words(self, texts: str, length: int) -> list[str]:
        """The options of train that all recipes have, on the texts of this name."""
        file = ["--train_file", str(self.data(texts)), "--train_format", "sentences"]
        return [*self.model_words, *file, "--max_seq_length", str(length), "--report_to", "none"]

    @property
    def held_out(self) -> Path:
        """Texts of the corpus to choose by."""
        return self.data("held_out")

    def comparison(self, words: Sequence[str], candidates: Sequence[Candidate], *others: str) -> Comparison:
        """As the command line ``st-simcse compare`` with these options."""
        recipes = [f"{candidate.name}: {shlex.join(candidate.words)}" for candidate in candidates]
        proxy = [f"--corpus_dev_file={self.held_out}"] if self.held_out.exists() else []
        argv = [*words, *self.measured, *proxy, "--recipe", *recipes, *others]
        return parse_comparison(argv, needs_dev=False)


@dataclass(frozen=True)
class Plan:
    """What is tried; in a file, so that a run that was stopped goes on with the same.

    Args:
        options: of the command, by name, without those that were left out.
        inputs: hashes of what the command reads, by name.
        corpus: what the texts are.
        model: what the model is.
        length: tokens of a text that training sees.
        texts: how many there are to train on, without duplicates and without those of dev and test data.
        measured: how many of the corpus's texts are left out because dev or test data have them.
        chooses_by: dev data, held-out texts of the corpus, or nothing.
        dev: of each dev column what its rows are, and how many there are.
        candidates: the recipes.
        share: how the budget is spent.
        whitening_rows: texts of the trials without training.
        seconds: what is expected of training the trials, of starting and measuring them, and of the longest final
            training.
    """

    options: dict[str, Any]
    inputs: dict[str, str | None]
    corpus: CorpusProfile
    model: ModelProfile
    length: int
    texts: int
    measured: int
    chooses_by: Literal["dev", "corpus", "nothing"]
    dev: dict[str, tuple[Kind, int]]
    candidates: list[Candidate]
    share: Share
    whitening_rows: int
    seconds: dict[str, float]

    def candidate(self, name: str) -> Candidate:
        """The recipe of this name."""
        return next(candidate for candidate in self.candidates if candidate.name == name)


def check_folder(folder: Path) -> None:
    """ValueError for a folder in which something else is."""
    others = sorted(path.name for path in folder.glob("*") if path.name not in _OURS)
    if others:
        raise ValueError(
            f"--output_dir {folder} holds {others[0]!r}, which adapt did not write: choose a folder that is new, or "
            "one that a run of this command was stopped in"
        )


def make_plan(task: Task) -> Plan:
    """The plan in the folder, or a new one; what it will cost is printed.

    Raises:
        ValueError: for a plan of other options, data or models; and as :func:`~st_simcse.cli.adapt.run`.
    """
    file = task.folder / "plan.json"
    task.corpus.source()  # there is one
    if not file.exists():
        task.held_out.unlink(missing_ok=True)  # of a run that was stopped before it had a plan
    inputs = _inputs(task)
    if file.exists():
        plan = _read(file)
        _check_same(file, plan, task.options, inputs)
    else:
        plan = _new_plan(task, inputs)
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(asdict(plan), indent=2) + "\n", encoding="utf-8")
        unfinished.replace(file)
    print(describe(plan))
    return plan


def describe(plan: Plan) -> str:
    """What is about to be done, and what it costs, for people."""
    corpus, model, share = plan.corpus, plan.model, plan.share
    kind = "paragraphs" if corpus.has_paragraphs else "sentences"
    lines = [
        f"corpus: {corpus.texts:,} {kind} in {corpus.script} script, median {corpus.words:,} words and "
        f"{corpus.characters:,} characters; {corpus.duplicates:,} duplicates, and {plan.measured:,} of the dev and "
        f"test data, are left out, {plan.texts:,} remain",
        f"model: {'its pooling was trained' if model.is_pooled else 'nobody trained its pooling'}, "
        f"{'with' if model.has_dropout else 'without'} dropout, {model.width} dimensions; training sees {plan.length} "
        "tokens of a text",
    ]
    trained = [candidate.name for candidate in plan.candidates if candidate.training]
    others = [candidate.name for candidate in plan.candidates if not candidate.training]
    if plan.chooses_by != "nothing":
        lines.append(f"without training, on {plan.whitening_rows:,} texts: {', '.join(others)}")
        lines.append(f"trained with {share.seeds} seeds on {share.rows:,} texts: {', '.join(trained)}")
        training, measuring, final = (shown_duration(plan.seconds[part]) for part in ("trials", "other", "final"))
        lines.append(
            f"cost: about {training} of training for the trials, and {measuring} to start and measure them; then the "
            f"winner on all texts, {final} at most"
        )
    return "\n".join(lines)


def _inputs(task: Task) -> dict[str, str | None]:
    corpus = task.corpus
    source = ["--train_file", corpus.corpus] if corpus.corpus else ["--train_dataset", str(corpus.dataset)]
    teachers = ["--teacher", *task.args.teacher] if task.args.teacher else []
    comparison = task.comparison([*task.model_words, *source, *teachers], [Candidate(BEFORE, "")])
    return identities(comparison.common, comparison.tests)


def _check_same(file: Path, plan: Plan, options: dict[str, Any], inputs: dict[str, str | None]) -> None:
    remedy = "choose another --output_dir, or delete that folder to begin anew"
    for name in sorted(plan.options.keys() | options.keys()):
        there, here = plan.options.get(name), options.get(name)
        if there != here:
            raise ValueError(
                f"{file} is of a run with other options, --{name} was {there!r} and is {here!r}: pass the same again, "
                f"or {remedy}"
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
        raise ValueError(f"{file} is damaged ({error}): delete the folder {file.parent} to begin anew") from error


def _new_plan(task: Task, inputs: dict[str, str | None]) -> Plan:
    texts = task.corpus.read(drop_duplicates=False)
    model, kind = profile_model(task.args.model_name_or_path, task.pooling)
    corpus = profile_corpus(_texts(texts))
    dev, measured = _measured(task)
    chooses_by: Literal["dev", "corpus", "nothing"] = (
        "dev" if dev else "corpus" if CHOOSES_WITHOUT_LABELS else "nothing"
    )
    left, without = _write_corpus(task, texts, measured, hold_out=chooses_by == "corpus")
    if chooses_by == "corpus":
        dev = {"corpus dev": ("queries", len(SentenceReader().get_dataset(str(task.held_out))))}
    candidates = shortlist(corpus, kind, task.args.teacher or [])
    some = left.select(sorted(random.Random(0).sample(range(len(left)), min(len(left), CALIBRATION_STEPS * BATCH))))
    sample = some["sentence"][:]
    length = training_length(lambda limit: count_longer(model, sample, limit) / len(sample), kind.reads)
    plan = Plan(
        task.options,
        inputs,
        corpus,
        kind,
        length,
        len(left),
        without,
        chooses_by,
        dev,
        candidates,
        Share(0, 1, 0),
        0,
        {},
    )
    if chooses_by == "nothing":
        return _without_trials(plan)
    return _with_trials(task, plan, model, left, sample, len(measured))


def _without_trials(plan: Plan) -> Plan:
    logger.warning(
        "without dev data nothing tells which recipe is best for these texts: adapt takes the safest one by the tables "
        "of docs/recipes.md. To let it choose, pass a hundred scored pairs (--dev_file), texts with classes "
        "(--knn_dev_file), or titles and texts (--retrieval_dev_file)"
    )
    names = {BEFORE, safest(plan.model)}
    return replace(plan, candidates=[candidate for candidate in plan.candidates if candidate.name in names])


def _with_trials(
    task: Task, plan: Plan, model: SentenceTransformer, left: Dataset, some: list[str], measured: int
) -> Plan:
    """The plan with rows and costs, and its samples in files."""
    encoding = _encoding_seconds(model, some)
    trained = [candidate for candidate in plan.candidates if candidate.training]
    paces = {
        candidate.name: _pace(task, plan.length, candidate, some, encoding)
        for candidate in tqdm(trained, desc="timing a few steps", unit="recipe")
    }
    task.data("timing").unlink(missing_ok=True)
    share = share_budget(task.budget, [*paces.values()], plan.texts, BATCH)
    rows = min(plan.texts, max(share.rows, TEXTS_PER_DIMENSION * plan.model.width))
    candidates = [
        candidate
        for candidate in plan.candidates
        if not candidate.power or (share.rows if candidate.training else rows) > plan.model.width
    ]
    for candidate in plan.candidates:
        if candidate not in candidates:
            logger.warning(
                "%s is left out: whitening %d dimensions takes more texts than the budget has; raise --budget",
                candidate.name,
                plan.model.width,
            )
    left_in = [candidate for candidate in candidates if candidate.training]
    runs = share.seeds * len(left_in) + len(candidates) - len(left_in)
    whitened = sum(bool(candidate.power) for candidate in candidates if not candidate.training)
    seconds = {
        "trials": share.seeds * sum(paces[candidate.name].seconds(share.rows, BATCH) for candidate in left_in),
        "other": runs * (START + measured * encoding) + whitened * rows * encoding,
        "final": max((paces[candidate.name].seconds(plan.texts, BATCH) for candidate in left_in), default=0.0),
    }
    _write(task.data("sample"), _sample(left, share.rows))
    _write(task.data("whitening"), _sample(left, rows))
    return replace(plan, share=share, whitening_rows=rows, candidates=candidates, seconds=seconds)


def _measured(task: Task) -> tuple[dict[str, tuple[Kind, int]], set[str]]:
    """What each dev column has for rows, and how many; and all texts of dev and test data."""
    comparison = task.comparison(task.model_words, [Candidate(BEFORE, "")])
    data_args = train.parse_train(comparison.common)[1]
    pairs: list[Any] = [*train.pair_evaluators(data_args)]
    has_dev = bool(data_args.dev_file or data_args.dev_dataset)
    found = measures(comparison.tests)
    dev = {evaluator.name: evaluator for evaluator in pairs[:has_dev]}
    dev |= {measure.name: measure.evaluator for measure in found if measure.split == "dev"}
    texts: set[str] = set()
    for evaluator in [*pairs, *(measure.evaluator for measure in found)]:
        texts.update(*_columns(evaluator))
    return {name: (_kind(evaluator), len(_columns(evaluator)[0])) for name, evaluator in dev.items()}, texts


def _kind(evaluator: Any) -> Kind:
    if isinstance(evaluator, EmbeddingSimilarityEvaluator):
        return "pairs"
    return "classes" if isinstance(evaluator, KNNEvaluator) else "queries"


def _columns(evaluator: Any) -> list[list[str]]:
    """The texts of an evaluator; the first column has as many as it has scores."""
    columns = (getattr(evaluator, name, None) for name in ("sentences1", "sentences2", "texts", "queries", "corpus"))
    return [column for column in columns if isinstance(column, list)]


def _texts(dataset: Dataset) -> Iterator[str]:
    for rows in dataset.iter(1000):
        yield from rows["sentence"]


def _write_corpus(task: Task, texts: Dataset, measured: set[str], hold_out: bool) -> tuple[Dataset, int]:
    """The different texts that nothing is measured on, in a file and as a Dataset; and how many of the others."""
    seen: set[int] = set()
    without = 0

    def different() -> Iterator[str]:
        nonlocal without
        for text in _texts(texts):
            if (key := hash(text)) not in seen:
                seen.add(key)
                if text in measured:
                    without += 1
                else:
                    yield text

    file = task.data("corpus")
    _write(file, different())
    count = len(seen) - without
    if count < LEAST_TEXTS:
        raise ValueError(
            f"{count:,} different texts beside those of the dev and test data are too few: {LEAST_TEXTS} are the "
            f"least, two batches of {BATCH}, and some thousand teach a model more"
        )
    if hold_out:
        left = SentenceReader().get_dataset(str(file))
        order = random.Random(0).sample(range(count), count)
        some = min(HELD_OUT, count // 5)
        _write(task.held_out, _texts(left.select(sorted(order[:some]))))
        _write(file, _texts(left.select(sorted(order[some:]))))
    return SentenceReader().get_dataset(str(file)), without


def _write(file: Path, texts: Iterator[str]) -> None:
    file.parent.mkdir(exist_ok=True)
    with file.open("w", encoding="utf-8") as output:
        for text in texts:
            output.write(json.dumps({"sentence": text}, ensure_ascii=False) + "\n")


def _sample(texts: Dataset, rows: int) -> Iterator[str]:
    """So many of them, drawn at random, the same every time."""
    return _texts(texts.select(sorted(random.Random(0).sample(range(len(texts)), rows))))


def _encoding_seconds(model: SentenceTransformer, texts: list[str]) -> float:
    """A text."""
    model.encode(texts[:BATCH], batch_size=BATCH, show_progress_bar=False)  # the first is slower
    began = time.perf_counter()
    model.encode(texts, batch_size=BATCH, show_progress_bar=False)
    return (time.perf_counter() - began) / len(texts)


class _Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def _pace(task: Task, length: int, candidate: Candidate, texts: list[str], encoding: float) -> Pace:
    """Of a few steps, here."""
    clock = _Clock()
    _write(task.data("timing"), iter(texts))
    argv = [*task.words("timing", length), *candidate.training, "--max_steps", str(CALIBRATION_STEPS)]
    with tempfile.TemporaryDirectory() as folder, silence():
        words = ["--output_dir", folder, "--save_strategy", "no"]
        train.run([*argv, *words], callbacks=[clock], before=False)
    steps = sorted(end - begin for begin, end in zip(clock.ends, clock.ends[1:], strict=False))
    row = encoding if candidate.power else 0.0
    for teacher in task.args.teacher or [] if "--teacher" in candidate.training else []:
        row += _encoding_seconds(load_model(teacher), texts)
    return Pace(steps[len(steps) // 2], row)
