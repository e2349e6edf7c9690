"""A record of the run in each checkpoint, so that no run resumes with different data, model or settings."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import logging
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from transformers import TrainerState, TrainingArguments, set_seed
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from st_simcse.models.dropout import unsaved_dropout
from st_simcse.models.lora import adapters
from st_simcse.training.run_folder import is_cut_off

logger = logging.getLogger(__name__)

RECORD_NAME = "simcse_run.json"

# The training arguments that affect the weights, without those for logging, saving, evaluation and hardware.
ARGUMENTS = (
    *("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size"),
    *("num_train_epochs", "max_steps", "learning_rate", "learning_rate_mapping", "lr_scheduler_type"),
    *("lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "weight_decay", "max_grad_norm"),
    *("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("bf16", "fp16", "tf32", "batch_sampler", "multi_dataset_batch_sampler", "dataloader_drop_last"),
    *("prompts", "router_mapping", "max_length", "views", "neftune_noise_alpha", "start_weight"),
    *("full_determinism", "ignore_data_skip"),
)


def describe_run(
    args: TrainingArguments, model: SentenceTransformer, losses: Mapping[str, torch.nn.Module], data: Any
) -> dict[str, Any]:
    """Returns everything that determines a run's weights, ready for JSON: data, model, objective and arguments.

    The description has a hash of up to a million rows of a Dataset, or of the first row of a stream.

    Args:
        args: The training arguments.
        model: The model to train.
        losses: The losses by dataset. A single loss has the empty name.
        data: A Dataset or IterableDataset, or several by name.
    """
    objective = {
        ".".join(filter(None, (dataset, "loss", name))): _describe_part(part)
        for dataset, loss in losses.items()
        for name, part in loss.named_modules()
        if hasattr(part, "get_config_dict") and not isinstance(part, (Module, SentenceTransformer))
    }
    return _plain(
        {
            "data": _describe_data(data),
            "model": _describe_model(model),
            "objective": objective,
            "arguments": {name: getattr(args, name, None) for name in ARGUMENTS},
        }
    )


def write_record(folder: Path, run: dict[str, Any], positions: list[tuple[int, int]] | None = None) -> None:
    """Adds the record of the run and a list of the files to a checkpoint that is otherwise complete.

    Args:
        folder: The folder of the checkpoint.
        run: The run as returned by :func:`describe_run`.
        positions: The position in the stream of each process: the completed passes, and the batches read of the next
            pass. None without a stream.
    """
    files = sorted(path.name for path in folder.iterdir() if path.suffix != ".md")
    record = {"run": run, "files": files, "positions": positions}
    (folder / RECORD_NAME).write_text(json.dumps(record, indent=1), encoding="utf-8")


def stream_position(checkpoint: str | Path, process: int) -> tuple[int, int]:
    """Returns the position of a process in a stream: the completed passes, and the batches read of the next pass.

    Raises:
        ValueError: If a different trainer, or an old version of this one, saved the checkpoint without it.
    """
    record = _read_record(Path(checkpoint))
    if not record or not record["positions"]:
        raise ValueError(
            f"{checkpoint} does not record how far the stream had been read, because it was saved by a different "
            "trainer or an earlier version of st_simcse. Train from the start."
        )
    passes, batches = record["positions"][process]
    return passes, batches


def check_resumable(checkpoint: str | Path, run: dict[str, Any], changes_allowed: bool) -> None:
    """Checks that training can continue from a checkpoint as if it had never been interrupted.

    Args:
        checkpoint: The folder of the checkpoint.
        run: This run as returned by :func:`describe_run`.
        changes_allowed: Whether to log differences from the checkpoint's run instead of raising an error.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If files of the checkpoint are missing, if a different version of transformers saved it, or if its
            run differs from this one.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        raise FileNotFoundError(
            f"The checkpoint {checkpoint} does not exist. Pass an existing one. To keep all checkpoints, train with "
            "save_total_limit=None."
        )
    if is_cut_off(checkpoint):
        raise ValueError(f"{checkpoint} was interrupted while it was saved. Resume from an earlier checkpoint.")
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    if unknown := set(state) - {field.name for field in dataclasses.fields(TrainerState)}:
        raise ValueError(
            f"{checkpoint / TRAINER_STATE_NAME} was saved by a different version of transformers: the installed "
            f"version does not know {', '.join(sorted(unknown))}. Resume with the version that saved it."
        )
    record = _read_record(checkpoint)
    if missing := _missing_files(checkpoint, run, record):
        raise ValueError(
            f"{checkpoint} is not complete: {', '.join(missing)} is missing. Resume from a different checkpoint."
        )
    if not any(checkpoint.glob(f"{Path(OPTIMIZER_NAME).stem}*")):
        logger.warning(
            "%s has only the model (save_only_model). The optimizer and the learning rate schedule start again.",
            checkpoint,
        )
    if record is None:
        logger.warning(
            "%s does not say which data, model, objective and arguments it was trained with, because a different "
            "trainer saved it. They are not compared with those of this run.",
            checkpoint,
        )
    elif differences := _differences(record["run"], run):
        if not changes_allowed:
            raise ValueError(
                f"{checkpoint} was saved by a run that differs from this one (saved -> now):\n  "
                + "\n  ".join(differences)
                + "\nResume with the data and settings of that run, train into a different output_dir, or pass "
                "resume_with_changes=True (--resume_with_changes) to continue with the changes."
            )
        logger.warning("Resuming %s with changes:\n  %s", checkpoint, "\n  ".join(differences))


def _read_record(checkpoint: Path) -> dict[str, Any] | None:
    path = checkpoint / RECORD_NAME
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {"run": record["run"], "files": record["files"], "positions": record.get("positions")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read and is probably damaged ({error})") from error


def _missing_files(checkpoint: Path, run: dict[str, Any], record: dict[str, Any] | None) -> list[str]:
    if record is not None:
        return [name for name in record["files"] if not (checkpoint / name).exists()]
    ranks = range(run["arguments"]["world_size"])
    random_states = [f"rng_state_{rank}.pth" for rank in ranks] if len(ranks) > 1 else ["rng_state.pth"]
    expected = [OPTIMIZER_NAME, SCHEDULER_NAME, *random_states]
    missing = [name for name in expected if not (checkpoint / name).exists()]
    return missing if len(missing) < len(expected) else []  # if all are missing, it was saved with save_only_model


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in dict.fromkeys([*old, *new])
            for line in _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{name}: {json.dumps(old)} -> {json.dumps(new)}"]


def _describe_data(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {name: _describe_data(dataset) for name, dataset in data.items()}
    if isinstance(data, Dataset):
        return {"columns": data.column_names, "rows": len(data), "hash of the rows": _hash_rows(data)}
    if isinstance(data, IterableDataset):
        with _random_states_aside():
            first = next(iter(data), None)
        return {"columns": data.column_names, "hash of the first row": _hash(repr(first).encode())}
    return type(data).__name__


def _hash_rows(data: Dataset, block: int = 1000, blocks: int = 1000) -> str:
    """Returns a hash of all rows, or of evenly spread blocks if there are more than block x blocks rows."""
    tables, hashed = data.with_format("arrow"), hashlib.blake2b(digest_size=8)
    for start in range(0, len(data), block * max(1, len(data) // (block * blocks))):
        table = tables[start : start + block]
        for name in [
            name for name, kind in zip(table.column_names, table.schema.types, strict=True) if _is_array(kind)
        ]:
            values = table[name].combine_chunks()
            while _is_array(values.type):
                values = values.flatten()
            hashed.update(values.to_numpy(zero_copy_only=False).tobytes())
            table = table.drop_columns([name])
        hashed.update(repr(table.to_pydict()).encode())
    return hashed.hexdigest()


def _is_array(kind: pa.DataType) -> bool:
    """Returns whether a column holds arrays, such as a teacher's embeddings, which are too large to hash as text."""
    return pa.types.is_fixed_size_list(kind)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


@contextmanager
def _random_states_aside() -> Iterator[None]:
    """Sets a fixed seed and restores the earlier random states afterwards.

    With the fixed seed, a stream that is augmented at random always has the same first row.
    """
    states = random.getstate(), np.random.get_state()
    accelerator = torch.accelerator.current_accelerator() or torch.device("cuda")
    with torch.random.fork_rng(device_type=accelerator.type):
        try:
            set_seed(0)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _describe_model(model: SentenceTransformer) -> dict[str, Any]:
    transformer = model.transformers_model
    config = {} if transformer is None else transformer.config.to_diff_dict()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    dropout = unsaved_dropout(model)
    described = {name: _describe_adapter(adapter) for name, adapter in adapters(model).items()}
    return {
        **({"adapters": described} if described else {}),
        "max_seq_length": getattr(model, "max_seq_length", None),
        "modules": {name: _describe_part(module) for name, module in model.named_children()},
        "transformer": {name: config[name] for name in config if name not in ("_name_or_path", "transformers_version")},
        "hash of the weights' shapes": _hash(json.dumps(shapes).encode()),
        **({"dropout": dropout} if dropout else {}),
    }


def _describe_adapter(config: Any) -> dict[str, Any]:
    of_loading = ("base_model_name_or_path", "inference_mode", "peft_version", "revision")
    return {name: value for name, value in config.to_dict().items() if name not in of_loading}


def _describe_part(part: Any) -> dict[str, Any]:
    return {"class": type(part).__name__, **(part.get_config_dict() if hasattr(part, "get_config_dict") else {})}


def _plain(value: Any) -> Any:
    """Converts a value to JSON types, without memory addresses, so that it is the same in every process."""
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, str):
        return re.sub(r" at 0x[0-9a-fA-F]+", "", value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(part) for part in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, **_plain(fields)}
    if isinstance(value, partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if isinstance(value, (torch.dtype, torch.device, Path)):
        return str(value)
    return getattr(value, "__qualname__", type(value).__qualname__)
