"""Measures whitening without training or after it, for several powers and numbers of dimensions, on one data set.

Each text is embedded once. This command makes a table of docs/choosing.md:

python benchmarks/whitening.py --model_name_or_path MODEL --pooling cls --model_max_length 32 --train_file wiki_2560.txt
--dev_file STSB-dev.tsv --test_file STSB-test.tsv --sts_dir sts

--models FOLDER FOLDER FOLDER whitens trained models of several seeds instead, and prints the mean and spread.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from embedded import DATA, StartArguments, averaged, loaded, remembered, scores, whitenings
from transformers import HfArgumentParser

from st_simcse import SentenceReader
from st_simcse.evaluation import format_table


@dataclass
class WhiteningArguments(StartArguments):
    train_file: str = field(kw_only=True, metadata={"help": "Texts that each whitening is fitted on."})
    models: list[str] = field(default_factory=list, metadata={"help": "Trained models of several seeds to whiten."})


def main() -> None:
    args, *groups = HfArgumentParser([WhiteningArguments, *DATA]).parse_args_into_dataclasses()
    texts = list(SentenceReader().get_dataset(args.train_file)["sentence"])
    asked = args.measures(groups)
    rows: dict[str, list[dict[str, float]]] = {}
    for model in map(remembered, loaded(args, args.models)):
        for name, whitened in [("as it is", model), *whitenings(model, texts)]:
            rows.setdefault(name, []).append(scores(whitened, asked))
    print(format_table({name: averaged(runs) for name, runs in rows.items()}, corner="whitening"))


if __name__ == "__main__":
    main()
