"""Options shared by the commands that embed a corpus: its source, and the settings of the embedding."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from st_simcse.cli.files import FileArguments, file_flags, file_options
from st_simcse.cli.parsing import PRECISION, Precision, check_inputs, check_positive, named_options

if TYPE_CHECKING:
    from datasets import Dataset

    from st_simcse.data.hub_dataset import HubDataset
    from st_simcse.data.readers import SentenceReader

__all__ = ["CorpusArguments", "EmbedArguments"]


@dataclass
class CorpusArguments(FileArguments):
    _argument_group_name: ClassVar[str] = "corpus"

    corpus: str | None = field(
        default=None,
        metadata={"help": "File of sentences (.txt), or a table (.csv, .tsv or .jsonl, also as .gz; or .parquet)."},
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "Data set to use instead of --corpus: a name on the hub, or a folder with the same layout."},
    )
    subset: str | None = field(default=None, metadata={"help": "Subset of --dataset."})
    split: str | None = field(
        default=None,
        metadata={"help": "Split of --dataset (defaults to train), or of a table with a column of splits."},
    )

    def check(self) -> None:
        """Checks that the options name one source.

        Raises:
            ValueError: Unless exactly one of ``--corpus`` and ``--dataset`` is given.
            FileNotFoundError: If the file does not exist.
        """
        if (self.corpus is None) == (self.dataset is None):
            raise ValueError("pass either --corpus with a file, or --dataset with a data set's name")
        if self.corpus is not None and self.subset:
            raise ValueError("--subset goes with --dataset, because a file has no subsets: leave it out")
        check_inputs(self)

    def source(self) -> str | HubDataset:
        """Returns the file or data set.

        Raises:
            ValueError, FileNotFoundError: If :meth:`check` raises them, or if ``--corpus`` is a folder.
        """
        from st_simcse.data.hub_dataset import HubDataset

        self.check()
        if self.corpus is None:
            return HubDataset(str(self.dataset), self.subset, self.split or "train")
        if Path(self.corpus).is_dir():  # an empty name is the current one
            raise ValueError(
                f"--corpus {self.corpus!r} is not a file: pass a file, or --dataset with the folder of a data set"
            )
        return self.corpus

    def read(self, drop_duplicates: bool) -> Dataset:
        """Reads the sentences into one column. The rows are kept on disk, not in memory.

        Raises:
            ValueError: If :meth:`check` or the reader refuses the source.
        """
        with named_options(**file_flags(vars(self))):
            reader, source = self._reader(drop_duplicates=drop_duplicates)
            return reader.get_dataset(source)

    def first(self, rows: int) -> list[str]:
        """Reads the first sentences only. The errors are those of :meth:`read`."""
        with named_options(**file_flags(vars(self))):
            reader, source = self._reader()
            return [text for (text,) in islice(reader.read(source), rows)]

    def _reader(self, **options: Any) -> tuple[SentenceReader, str | HubDataset]:
        from st_simcse.data.readers import SentenceReader

        source = self.source()
        options |= file_options(vars(self))
        if self.corpus is None:  # HubDataset already names the split
            options.pop("split", None)
        return SentenceReader(**options), source


@dataclass
class EmbedArguments:
    _argument_group_name: ClassVar[str] = "embedding"

    batch_size: int = field(
        default=64, metadata={"help": "Sentences per forward pass. On a CPU, long sentences come in smaller batches."}
    )
    precision: Precision = PRECISION
    device: list[str] | None = field(
        default=None,
        metadata={"help": "Device such as cuda or cpu. Several, such as cuda:0 cuda:1, run one process each."},
    )

    def check(self) -> None:
        """Raises ValueError if an option is out of range, or options do not go together."""
        check_positive(self, "batch_size")
        if self.device and len(self.device) > 1 and self.precision in ("bfloat16", "float16"):
            raise ValueError(
                f"--precision {self.precision} works on a single device only, because several processes compute in the "
                "precision of the weights: pass one --device, or --precision auto or float32"
            )

    def options(self) -> dict[str, int | str | list[str] | None]:
        """Returns the arguments for ``Searcher.build_index`` and ``add_to_index``.

        Raises:
            ValueError: If torch cannot use a device.
        """
        import torch

        for name in self.device or []:
            try:
                torch.empty(0, device=name)
            except (RuntimeError, AssertionError) as error:  # the latter if torch was built without CUDA
                raise ValueError(
                    f"--device {name} cannot be used here ({str(error).splitlines()[0]}): leave it out, or pass cpu"
                ) from None
        device = self.device[0] if self.device and len(self.device) == 1 else self.device
        return {"batch_size": self.batch_size, "device": device}
