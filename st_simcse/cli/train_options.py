"""The options of ``st-simcse train`` on the model and the data; those of the objective and the trainer import torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from st_simcse.cli.parsing import Pooling, check_inputs, parse_known
from st_simcse.presets import preset_options

__all__ = ["EXAMPLE", "DataArguments", "ModelArguments", "check_data", "check_words", "with_preset"]

EXAMPLE = "st-simcse train --model_name_or_path bert-base-uncased --train_file sentences.txt --projection_head"


@dataclass
class ModelArguments:
    _argument_group_name: ClassVar[str] = "model"

    model_name_or_path: str = field(metadata={"help": "A folder, or a model's name on the Hugging Face hub."})
    pooling: Pooling = field(
        default="as saved",
        metadata={"help": "How token embeddings become a sentence embedding; a bare transformer gets cls."},
    )
    model_max_length: int | None = field(
        default=None,
        metadata={"help": "Tokens of a text that the model reads, here and once it is saved; as before, or 128."},
    )
    dense: bool = field(default=False, metadata={"help": "Put the MLP into the model, for inference too."})
    layers: int | None = field(
        default=None, metadata={"help": "Keep so many of the transformer's layers, the lowest; or all."}
    )
    dropout: float | None = field(
        default=None, metadata={"help": "In training only, whatever the model's configuration calls it; or its own."}
    )
    bidirectional: bool = field(default=False, metadata={"help": "Let a decoder's tokens see those behind them too."})
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        default=None, metadata={"help": "Precision of the weights; float32, or with adapters as saved."}
    )
    lora_r: int | None = field(
        default=None,
        metadata={"help": "Train adapters of this rank (LoRA) instead of the model's weights; needs peft."},
    )
    lora_alpha: int | None = field(
        default=None, metadata={"help": "Adapters count lora_alpha / lora_r times; 8 when left out."}
    )
    lora_dropout: float | None = field(default=None, metadata={"help": "Dropout before adapters; 0 when left out."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the layers that get one, or all-linear; peft's for the architecture if left out."},
    )
    lora_merge: bool = field(
        default=True,
        metadata={"help": "Add adapters to the weights that are saved at the end; checkpoints hold adapters alone."},
    )
    whiten: Literal["before", "after"] | None = field(
        default=None,
        metadata={
            "help": "Even out the spread of the embeddings of the training data with a linear layer: before training, "
            "which the layer takes part in, or after it; before if neither is said.",
            "nargs": "?",
            "const": "before",
        },
    )
    whiten_power: float | None = field(
        default=None, metadata={"help": "1 whitens, 0 subtracts the mean alone, 0.5 is between; 1 when left out."}
    )
    whiten_dimensions: int | None = field(
        default=None, metadata={"help": "Keep so many dimensions, those of the largest spread; or all."}
    )
    whiten_frozen: bool = field(default=False, metadata={"help": "Leave that layer as it is in training."})
    model_prompts: str | None = field(
        default=None,
        metadata={"help": 'Prompts that the model knows by name and is saved with, as JSON: {"query": "query: "}.'},
    )
    default_prompt_name: str | None = field(
        default=None, metadata={"help": "The one of them that encode and evaluation use where none is asked for."}
    )
    # nargs and const let the command line say `--include_prompt false`.
    include_prompt: bool | None = field(
        default=None,
        metadata={"help": "Whether pooling counts the prompt's tokens; as saved.", "nargs": "?", "const": True},
    )


@dataclass
class DataArguments:
    _argument_group_name: ClassVar[str] = "data"

    train_file: str | None = field(
        default=None, metadata={"help": "Sentences (.txt) or a table (.csv, .tsv, .jsonl, also .gz; .parquet)."}
    )
    train_dataset: str | None = field(
        default=None, metadata={"help": "Instead of a file: a data set's name on the hub, or a folder in its layout."}
    )
    train_subset: str | None = field(default=None, metadata={"help": "Which of its subsets, such as triplet."})
    train_split: str | None = field(default=None, metadata={"help": "Which split; of a data set train when left out."})
    streaming: bool = field(
        default=False, metadata={"help": "Read the training data while training goes on; needs --max_steps."}
    )
    train_format: Literal["auto", "sentences", "triplets", "nli", "lines"] = field(
        default="auto",
        metadata={
            "help": "auto: text files hold sentences, tables hold triplets, data sets what their columns say; lines: "
            "each line is a sentence, whatever is in it."
        },
    )
    train_delimiter: str | None = field(
        default=None, metadata={"help": "What separates the cells of the train file, such as ||; found if none."}
    )
    train_encoding: str | None = field(
        default=None, metadata={"help": "Of the train file, such as gb18030; UTF-8 if none."}
    )
    train_quoting: Literal["minimal", "none"] | None = field(
        default=None,
        metadata={"help": "Whether its cells may stand in quotes; if none, those that commas separate may."},
    )
    columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names, or numbers from 0, of the columns of a train table; each cell of them is a sentence with "
            "--train_format sentences."
        },
    )
    max_train_samples: int | None = field(
        default=None,
        metadata={"help": "Train on so many rows, drawn at random with --seed, where there are more; 0 or none: all."},
    )
    labels: list[str] | None = field(
        default=None,
        metadata={
            "help": "Of nli rows: the meanings of the labels 0, 1, ... in their order, such as entailment neutral "
            "contradiction, or of any by name, such as not_entailment=contradiction."
        },
    )
    dev_file: str | None = field(
        default=None, metadata={"help": "Scored pairs; evaluated during training, the best checkpoint is kept."}
    )
    dev_dataset: str | None = field(default=None, metadata={"help": "Instead of a file, as --train_dataset."})
    dev_subset: str | None = field(default=None, metadata={"help": "Which of its subsets."})
    dev_split: str | None = field(
        default=None, metadata={"help": "Which split; of a data set validation when left out."}
    )
    dev_columns: list[str] | None = field(
        default=None, metadata={"help": "Sentence, sentence, score: names, or numbers from 0, if not the usual ones."}
    )
    dev_format: Literal["csv", "tsv", "jsonl"] | None = field(
        default=None, metadata={"help": "What the file is; if none, what its name and first lines say."}
    )
    dev_delimiter: str | None = field(default=None, metadata={"help": "As --train_delimiter."})
    dev_encoding: str | None = field(default=None, metadata={"help": "As --train_encoding."})
    dev_quoting: Literal["minimal", "none"] | None = field(default=None, metadata={"help": "As --train_quoting."})
    test_file: str | None = field(default=None, metadata={"help": "Scored pairs, evaluated before and after."})
    test_dataset: str | None = field(default=None, metadata={"help": "Instead of a file, as --train_dataset."})
    test_subset: str | None = field(default=None, metadata={"help": "Which of its subsets."})
    test_split: str | None = field(default=None, metadata={"help": "Which split; of a data set test when left out."})
    test_columns: list[str] | None = field(default=None, metadata={"help": "As --dev_columns."})
    test_format: Literal["csv", "tsv", "jsonl"] | None = field(
        default=None, metadata={"help": "What the file is; if none, what its name and first lines say."}
    )
    test_delimiter: str | None = field(default=None, metadata={"help": "As --train_delimiter."})
    test_encoding: str | None = field(default=None, metadata={"help": "As --train_encoding."})
    test_quoting: Literal["minimal", "none"] | None = field(default=None, metadata={"help": "As --train_quoting."})
    alignment_uniformity: bool = field(
        default=False,
        metadata={"help": "Log alignment and uniformity of the dev pairs at each evaluation, and draw them."},
    )
    teacher: list[str] | None = field(
        default=None,
        metadata={
            "help": "Models whose embeddings of the training data guide it; for the options that need a teacher."
        },
    )
    preset: str | None = field(default=None, metadata={"help": "A recipe of st-simcse presets; other options win."})
    seeds: list[int] | None = field(
        default=None, metadata={"help": "Train once a seed, each in a folder of its own; report mean and spread."}
    )


def with_preset(argv: Sequence[str]) -> list[str]:
    """The command's words, and before them those of the preset that they name."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset", nargs="?")
    preset = finder.parse_known_args(argv)[0].preset
    return [*(preset_options(preset) if preset else []), *argv]


def check_words(argv: Sequence[str]) -> None:
    """What can be known of the command's words before the libraries are imported, whose options may be among them.

    Raises:
        SystemExit: for a required option that is left out, and a value that does not fit.
        ValueError: for an unknown preset; as :func:`check_data`.
        FileNotFoundError: as :func:`check_data`.

    Example:
        >>> check_words(["--model_name_or_path", "bert-base-uncased", "--train_file", "absent.txt"])
        Traceback (most recent call last):
        ...
        FileNotFoundError: --train_file: there is no file absent.txt: check its name and the folder, ...
    """
    if not {"-h", "--help"} & set(argv):
        _, data_args, _ = parse_known("train", with_preset(argv), ModelArguments, DataArguments, example=EXAMPLE)
        check_data(data_args)


def check_data(args: DataArguments) -> None:
    """ValueError without training data; FileNotFoundError for a file that is not there."""
    if args.train_file is None and args.train_dataset is None:
        raise ValueError("pass --train_file, or --train_dataset with a data set's name")
    check_inputs(args)
