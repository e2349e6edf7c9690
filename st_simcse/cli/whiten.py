"""``st-simcse whiten``: evens out the spread of a model's embeddings on a corpus; and the same as a part of train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from st_simcse.cli.corpus import CorpusArguments
from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.parsing import Pooling, check_outputs, check_positive, named_options, parse, pooling_mode

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from sentence_transformers import SentenceTransformer


@dataclass
class WhitenArguments:
    model: str = field(metadata={"help": "Folder of a saved model, or its name on the hub."})
    output_dir: str = field(metadata={"help": "Where the whitened model goes."})
    pooling: Pooling = field(
        default="as saved", metadata={"help": "Replaces the pooling that the model was saved with."}
    )
    power: float = field(default=1.0, metadata={"help": "1 whitens, 0 subtracts the mean alone, 0.5 is between."})
    dimensions: int | None = field(
        default=None, metadata={"help": "Keep so many dimensions, those of the largest spread; or all."}
    )
    batch_size: int = field(default=64, metadata={"help": "Sentences a forward pass."})


def run(argv: Sequence[str]) -> None:
    """Save the whitened model, a plain SentenceTransformer.

    Raises:
        ValueError: as the reader and :func:`~st_simcse.whiten`.
        OSError: at once for a folder that cannot be written, and for a model that cannot be loaded.
    """
    example = "st-simcse whiten --model output --corpus sentences.txt --output_dir whitened"
    args, corpus = parse("whiten", argv, WhitenArguments, CorpusArguments, example=example)
    check_positive(args, "batch_size", "dimensions")
    corpus.check()
    check_outputs(args)
    import_libraries()
    texts = corpus.read(drop_duplicates=True)

    from st_simcse.models.checkpoints import load_model
    from st_simcse.models.whitening import whiten

    model = load_model(args.model, pooling_mode(args.pooling))
    with named_options(power="--power", dimensions="--dimensions"):
        layer = whiten(model, _texts(texts), args.power, args.dimensions, batch_size=args.batch_size)
    model.save_pretrained(args.output_dir)
    print(f"whitened on {len(texts):,} texts, and saved to {args.output_dir}: {layer.out_features} dimensions")


class Whitening:
    """What ``--whiten`` and its kin ask of a training.

    Args:
        model: the model to train.
        dataset: the training data, texts alone.
        options: those of the command that begin with ``whiten``.
        args: of the trainer.

    Raises:
        ValueError: for options and data that do not go together.
    """

    def __init__(self, model: SentenceTransformer, dataset: Dataset | IterableDataset, options: Any, args: Any) -> None:
        self.model, self.dataset, self.options, self.args = model, dataset, options, args
        self.is_before, self.is_after = options.whiten == "before", options.whiten == "after"
        given = {
            "whiten_power": options.whiten_power is not None,
            "whiten_dimensions": options.whiten_dimensions is not None,
            "whiten_frozen": options.whiten_frozen,
        }
        if not options.whiten and any(given.values()):
            name = next(name for name, is_given in given.items() if is_given)
            raise ValueError(f"--{name} is part of --whiten: pass that too")
        if self.is_after and options.whiten_frozen:
            raise ValueError("--whiten_frozen is for --whiten before: after training no layer changes, leave it out")
        if options.whiten and not hasattr(dataset, "__len__"):
            raise ValueError("--whiten embeds all of the training data beforehand: leave --streaming out")
        self.prompt = self._prompt() if options.whiten else None

    def before_training(self) -> None:
        """Whiten the model where it is to be whitened before."""
        if self.is_before:
            self._whiten().requires_grad_(not self.options.whiten_frozen)

    def after_training(self) -> None:
        """Whiten the model where it is to be whitened after."""
        if self.is_after:
            self._whiten()

    def _whiten(self) -> Any:
        from st_simcse.models.whitening import whiten

        power = 1.0 if self.options.whiten_power is None else self.options.whiten_power
        self.model.to(self.args.device)
        with named_options(power="--whiten_power", dimensions="--whiten_dimensions"):
            return whiten(self.model, _texts(self.dataset), power, self.options.whiten_dimensions, prompt=self.prompt)

    def _prompt(self) -> str | None:
        """The prompt of the training, which has to be one for all columns; or the model's own."""
        prompts = self.args.prompts
        if not isinstance(prompts, dict):
            return prompts
        found = {prompts.get(column, "") for column in self.dataset.column_names or []}
        if len(found) > 1:
            raise ValueError(
                "--whiten takes one prompt for all texts, and --prompts has several by column: pass one text, or "
                "whiten the model first with st-simcse whiten"
            )
        return found.pop()


def _texts(dataset: Any) -> Iterator[str]:
    """Every text of every column, a row at a time."""
    for row in dataset:
        yield from row.values()
