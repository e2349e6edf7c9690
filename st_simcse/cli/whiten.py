"""``st-simcse whiten``: evens out the spread of a model's embeddings on a corpus. ``train --whiten`` uses it too."""

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
    output_dir: str = field(metadata={"help": "Folder for the whitened model."})
    pooling: Pooling = field(
        default="as saved", metadata={"help": "Pooling to use instead of the one that the model was saved with."}
    )
    power: float = field(
        default=1.0, metadata={"help": "Strength: 1 whitens fully, 0 only subtracts the mean, and 0.5 is in between."}
    )
    dimensions: float | None = field(
        default=None,
        metadata={
            "help": "Number of dimensions to keep, those with the largest spread, or their share below 1. Keeps all if "
            "not given."
        },
    )
    batch_size: int = field(default=64, metadata={"help": "Sentences per forward pass."})


def run(argv: Sequence[str]) -> None:
    """Saves the whitened model, which is a plain SentenceTransformer.

    Raises:
        ValueError: If the reader or :func:`~st_simcse.whiten` refuses the corpus or the options.
        OSError: If the corpus cannot be read, the model cannot be loaded, or the folder cannot be written.
    """
    example = "st-simcse whiten --model output --corpus sentences.txt --output_dir whitened"
    args, corpus = parse("whiten", argv, WhitenArguments, CorpusArguments, example=example)
    check_positive(args, "batch_size")
    corpus.check()
    check_outputs(args)
    import_libraries()
    texts = corpus.read(drop_duplicates=True)

    from st_simcse.models.checkpoints import load_model
    from st_simcse.models.lora import adapters, remove_outdated
    from st_simcse.models.whitening import whiten

    model = load_model(args.model, pooling_mode(args.pooling))
    with named_options(power="--power", dimensions="--dimensions"):
        whiten(model, _texts(texts), args.power, args.dimensions, batch_size=args.batch_size)
    model.save_pretrained(args.output_dir)
    remove_outdated(args.output_dir, is_adapter=bool(adapters(model)))
    width = model.get_embedding_dimension()
    print(f"whitened on {len(texts):,} texts and saved to {args.output_dir} with {width} dimensions")


class Whitening:
    """The whitening that ``--whiten`` adds to a training.

    Args:
        model: The model to train.
        dataset: The training data, with columns of texts only.
        options: The options of the command. Only those that begin with ``whiten`` are used.
        args: The arguments of the trainer.

    Raises:
        ValueError: If the options and the data do not go together.
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
            raise ValueError(f"--{name} needs --whiten: pass both, or neither")
        if self.is_after and options.whiten_frozen:
            raise ValueError(
                "--whiten_frozen goes with --whiten before, because no layer changes after training: leave it out"
            )
        if options.whiten and not hasattr(dataset, "__len__"):
            raise ValueError(
                "--whiten embeds all training data before training and cannot be used with --streaming: leave one out"
            )
        self.prompt = self._prompt() if options.whiten else None
        if options.whiten:
            self._check()

    def before_training(self) -> None:
        """Whitens the model if ``--whiten before`` was passed."""
        if self.is_before:
            self._whiten().requires_grad_(not self.options.whiten_frozen)

    def after_training(self) -> None:
        """Whitens the model if ``--whiten after`` was passed."""
        if self.is_after:
            self._whiten()

    @property
    def _power(self) -> float:
        return 1.0 if self.options.whiten_power is None else self.options.whiten_power

    def _check(self) -> None:
        """Raises the errors of the whitening now, because ``--whiten after`` whitens when the training is over."""
        from st_simcse.models.whitening import check_whitening

        count = len(self.dataset) * len(self.dataset.column_names or [])
        with named_options(power="--whiten_power", dimensions="--whiten_dimensions"):
            check_whitening(self.model, self._power, self.options.whiten_dimensions, count)

    def _whiten(self) -> Any:
        from st_simcse.models.whitening import whiten

        dimensions = self.options.whiten_dimensions
        self.model.to(self.args.device)
        with named_options(power="--whiten_power", dimensions="--whiten_dimensions"):
            return whiten(self.model, _texts(self.dataset), self._power, dimensions, prompt=self.prompt)

    def _prompt(self) -> str | None:
        """Returns the prompt of the training, which must be the same for all columns, or None for the model's own."""
        prompts = self.args.prompts
        if not isinstance(prompts, dict):
            return prompts
        found = {prompts.get(column, "") for column in self.dataset.column_names or []}
        if len(found) > 1:
            raise ValueError(
                "--whiten needs one prompt for all texts, but --prompts has a different one for each column: pass one "
                "prompt, or whiten the model first with st-simcse whiten"
            )
        return found.pop()


def _texts(dataset: Any) -> Iterator[str]:
    """Yields the texts of all columns, row by row."""
    for row in dataset:
        yield from row.values()
