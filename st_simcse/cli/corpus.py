"""What the commands that embed a corpus have in common: where it is, and how it is embedded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from st_simcse.cli.files import FileArguments, file_flags, file_options
from st_simcse.cli.parsing import PRECISION, Precision, check_inputs, check_positive, named_options

if TYPE_CHECKING:
    from datasets import Dataset

    from st_simcse.data.hub_dataset import HubDataset

__all__ = ["CorpusArguments", "EmbedArguments"]


@dataclass
class CorpusArguments(FileArguments):
    _argument_group_name: ClassVar[str] = "corpus"

    corpus: str | None = field(
        default=None, metadata={"help": "Sentences (.txt), or a table (.csv, .tsv, .jsonl, also .gz; .parquet)."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "Instead of a file: a data set's name on the hub, or a folder in its layout."}
    )
    subset: str | None = field(default=None, metadata={"help": "Which of its subsets."})
    split: str | None = field(
        default=None,
        metadata={"help": "Which split of a data set (train when left out), or of a table with a column of splits."},
    )

    def check(self) -> None:
        """ValueError unless it is a file or a data set; FileNotFoundError for a file that is not there."""
        if (self.corpus is None) == (self.dataset is None):
            raise ValueError("pass either --corpus with a file, or --dataset with a data set's name")
        if self.corpus is not None and self.subset:
            raise ValueError("--subset is for --dataset: a file has none")
        check_inputs(self)

    def source(self) -> str | HubDataset:
        """The file or data set; errors as :meth:`check`."""
        from st_simcse.data.hub_dataset import HubDataset

        self.check()
        return self.corpus or HubDataset(str(self.dataset), self.subset, self.split or "train")

    def read(self, drop_duplicates: bool) -> Dataset:
        """The sentences, one column; rows stream through the disk.

        Raises:
            ValueError: unless it is a file or a data set; and as the reader.
        """
        from st_simcse.data.readers import SentenceReader

        source = self.source()
        options = file_options(vars(self))
        if self.corpus is None:  # a data set is loaded a split at a time
            options.pop("split", None)
        with named_options(**file_flags(vars(self))):
            return SentenceReader(drop_duplicates=drop_duplicates, **options).get_dataset(source)


@dataclass
class EmbedArguments:
    _argument_group_name: ClassVar[str] = "embedding"

    batch_size: int = field(default=64, metadata={"help": "Sentences a forward pass; on a CPU fewer of the long ones."})
    precision: Precision = PRECISION
    device: list[str] | None = field(
        default=None, metadata={"help": "Such as cuda or cpu; several have a process each, such as cuda:0 cuda:1."}
    )

    def options(self) -> dict[str, int | str | list[str] | None]:
        """For ``Searcher.build_index`` and ``add_to_index``."""
        check_positive(self, "batch_size")
        if self.device and len(self.device) > 1 and self.precision in ("bfloat16", "float16"):
            raise ValueError(
                f"several processes compute as the weights are, not in {self.precision}: pass one --device, or "
                "--precision auto or float32"
            )
        device = self.device[0] if self.device and len(self.device) == 1 else self.device
        return {"batch_size": self.batch_size, "device": device}
