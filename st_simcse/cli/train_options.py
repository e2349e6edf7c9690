"""The model and data options of ``st-simcse train``. They are separate because the other options import torch."""

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

    model_name_or_path: str = field(metadata={"help": "Folder of a model, or its name on the Hugging Face hub."})
    pooling: Pooling = field(
        default="as saved",
        metadata={"help": "Pooling of the token embeddings. With 'as saved', a bare transformer gets cls."},
    )
    model_max_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens that the model reads, in training and after it is saved. Defaults to the "
            "model's own, or 128 for a bare transformer."
        },
    )
    dense: bool = field(
        default=False, metadata={"help": "Add the MLP to the model, so that it is used at inference too."}
    )
    layers: int | None = field(
        default=None,
        metadata={"help": "Number of transformer layers to keep, counted from the lowest. Keeps all if not given."},
    )
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout probability in training. Defaults to the model's own."}
    )
    bidirectional: bool = field(
        default=False, metadata={"help": "Let the tokens of a decoder attend to later tokens too."}
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        default=None,
        metadata={"help": "Precision of the weights. Defaults to float32, or with adapters to the saved precision."},
    )
    lora_r: int | None = field(
        default=None,
        metadata={"help": "Rank of LoRA adapters to train instead of the model's weights. Needs peft."},
    )
    lora_alpha: int | None = field(
        default=None, metadata={"help": "Adapters are scaled by lora_alpha / lora_r. Defaults to 8."}
    )
    lora_dropout: float | None = field(
        default=None, metadata={"help": "Dropout probability before the adapters. Defaults to 0."}
    )
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the layers that get an adapter, or all-linear. Defaults to peft's choice for the "
            "architecture."
        },
    )
    lora_merge: bool = field(
        default=True,
        metadata={
            "help": "Merge the adapters into the model that is saved at the end. Checkpoints hold adapters only."
        },
    )
    whiten: Literal["before", "after"] | None = field(
        default=None,
        metadata={
            "help": "Even out the spread of the embeddings of the training data with a linear layer. 'before' adds the "
            "layer before training and trains it too. 'after' adds it after training. Without a value, --whiten means "
            "before.",
            "nargs": "?",
            "const": "before",
        },
    )
    whiten_power: float | None = field(
        default=None,
        metadata={
            "help": "Strength: 1 whitens fully, 0 only subtracts the mean, and 0.5 is in between. Defaults to 1."
        },
    )
    whiten_dimensions: float | None = field(
        default=None,
        metadata={
            "help": "Number of dimensions to keep, those with the largest spread, or their share below 1. Keeps all if "
            "not given."
        },
    )
    whiten_frozen: bool = field(default=False, metadata={"help": "Do not train the whitening layer."})
    model_prompts: str | None = field(
        default=None,
        metadata={"help": 'Named prompts to save with the model, as JSON such as {"query": "query: "}.'},
    )
    default_prompt_name: str | None = field(
        default=None, metadata={"help": "Name of the prompt that encode and evaluation use by default."}
    )
    # nargs and const let the command line say `--include_prompt false`.
    include_prompt: bool | None = field(
        default=None,
        metadata={
            "help": "Whether pooling includes the tokens of the prompt. Defaults to the model's own setting.",
            "nargs": "?",
            "const": True,
        },
    )


@dataclass
class DataArguments:
    _argument_group_name: ClassVar[str] = "data"

    train_file: str | None = field(
        default=None,
        metadata={"help": "File of sentences (.txt), or a table (.csv, .tsv or .jsonl, also as .gz; or .parquet)."},
    )
    train_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Data set to use instead of --train_file: a name on the hub, or a folder with the same layout."
        },
    )
    train_subset: str | None = field(default=None, metadata={"help": "Subset of --train_dataset, such as triplet."})
    train_split: str | None = field(
        default=None,
        metadata={"help": "Split of --train_dataset (defaults to train), or of a table with a column of splits."},
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the training data during training, not before it. Needs --max_steps."}
    )
    train_format: Literal["auto", "sentences", "triplets", "nli", "lines"] = field(
        default="auto",
        metadata={
            "help": "Format of the training data. auto: text files hold sentences, tables hold triplets, and the "
            "columns of a data set decide; lines: each line of the file is a sentence, whatever it contains."
        },
    )
    train_delimiter: str | None = field(
        default=None, metadata={"help": "Delimiter of the cells of --train_file, such as ||. Detected if not given."}
    )
    train_encoding: str | None = field(
        default=None, metadata={"help": "Encoding of --train_file, such as gb18030. Defaults to UTF-8."}
    )
    train_quoting: Literal["minimal", "none"] | None = field(
        default=None,
        metadata={
            "help": "minimal: cells may be quoted; none: quotes are part of the text. If not given, cells may be "
            "quoted if they are separated by commas or semicolons."
        },
    )
    columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns of the training data: names, or numbers from 0. With --train_format sentences, each cell "
            "is a sentence."
        },
    )
    max_train_samples: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of training rows. From more, rows are drawn at random with --seed. Uses all if 0 "
            "or not given."
        },
    )
    labels: list[str] | None = field(
        default=None,
        metadata={
            "help": "Meanings of the labels of NLI rows: in the order of the labels 0, 1, ..., such as entailment "
            "neutral contradiction, or by name, such as not_entailment=contradiction."
        },
    )
    dev_file: str | None = field(
        default=None,
        metadata={"help": "Scored pairs to evaluate on during training. The best checkpoint is kept."},
    )
    dev_dataset: str | None = field(
        default=None, metadata={"help": "Data set to use instead of --dev_file, like --train_dataset."}
    )
    dev_subset: str | None = field(default=None, metadata={"help": "Subset of --dev_dataset."})
    dev_split: str | None = field(
        default=None,
        metadata={"help": "Split of --dev_dataset (defaults to validation), or of a table with a column of splits."},
    )
    dev_columns: list[str] | None = field(
        default=None,
        metadata={"help": "Columns for sentence, sentence and score, if not the usual ones: names, or numbers from 0."},
    )
    dev_format: Literal["csv", "tsv", "jsonl"] | None = field(
        default=None, metadata={"help": "Format of the file. Detected from its name and first lines if not given."}
    )
    dev_delimiter: str | None = field(default=None, metadata={"help": "Like --train_delimiter, for --dev_file."})
    dev_encoding: str | None = field(default=None, metadata={"help": "Like --train_encoding, for --dev_file."})
    dev_quoting: Literal["minimal", "none"] | None = field(
        default=None, metadata={"help": "Like --train_quoting, for --dev_file."}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "Scored pairs to evaluate on before and after training."}
    )
    test_dataset: str | None = field(
        default=None, metadata={"help": "Data set to use instead of --test_file, like --train_dataset."}
    )
    test_subset: str | None = field(default=None, metadata={"help": "Subset of --test_dataset."})
    test_split: str | None = field(
        default=None,
        metadata={"help": "Split of --test_dataset (defaults to test), or of a table with a column of splits."},
    )
    test_columns: list[str] | None = field(default=None, metadata={"help": "Like --dev_columns, for --test_file."})
    test_format: Literal["csv", "tsv", "jsonl"] | None = field(
        default=None, metadata={"help": "Format of the file. Detected from its name and first lines if not given."}
    )
    test_delimiter: str | None = field(default=None, metadata={"help": "Like --train_delimiter, for --test_file."})
    test_encoding: str | None = field(default=None, metadata={"help": "Like --train_encoding, for --test_file."})
    test_quoting: Literal["minimal", "none"] | None = field(
        default=None, metadata={"help": "Like --train_quoting, for --test_file."}
    )
    alignment_uniformity: bool = field(
        default=False,
        metadata={"help": "Log the alignment and uniformity of the dev pairs at each evaluation, and draw them."},
    )
    teacher: list[str] | None = field(
        default=None,
        metadata={
            "help": "Models whose embeddings of the training data guide the training. Used by options that need a "
            "teacher."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={"help": "Recipe to start from, see st-simcse presets. Other options override those of the recipe."},
    )
    seeds: list[int] | None = field(
        default=None,
        metadata={"help": "Seeds to train with, each in its own folder. Prints the mean and spread of the scores."},
    )


def with_preset(argv: Sequence[str]) -> list[str]:
    """Returns the arguments of the command, preceded by those of the preset that they name."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset", nargs="?")
    preset = finder.parse_known_args(argv)[0].preset
    return [*(preset_options(preset) if preset else []), *argv]


def check_words(argv: Sequence[str]) -> None:
    """Checks the options for model and data before the libraries are imported. Other options are ignored here.

    Raises:
        SystemExit: If a required option is missing, or a value does not fit.
        ValueError: If the preset is unknown, or :func:`check_data` refuses the options.
        FileNotFoundError: If a file does not exist.

    Example:
        >>> check_words(["--model_name_or_path", "bert-base-uncased", "--train_file", "absent.txt"])
        Traceback (most recent call last):
        ...
        FileNotFoundError: --train_file: there is no file absent.txt: check its name and the folder ...
    """
    if not {"-h", "--help"} & set(argv):
        _, data_args, _ = parse_known("train", with_preset(argv), ModelArguments, DataArguments, example=EXAMPLE)
        check_data(data_args)


def check_data(args: DataArguments) -> None:
    """Checks that there is training data.

    Raises:
        ValueError: If the options name no training data.
        FileNotFoundError: If a file does not exist.
    """
    if args.train_file is None and args.train_dataset is None:
        raise ValueError(
            "there is no training data: pass --train_file with a file, or --train_dataset with the name of a data set"
        )
    check_inputs(args)
