import os
import subprocess
import sys

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.sampler import (
    DefaultBatchSampler,
    GroupByLabelBatchSampler,
    NoDuplicatesBatchSampler,
    ProportionalBatchSampler,
    RoundRobinBatchSampler,
)
from torch.utils.data import ConcatDataset

from st_simcse import LengthGroupedBatchSampler
from st_simcse.training.samplers import EvenBatchSampler, RoundSampler
from tests.forked import ROOT, torchrun

WORKER = ["-m", "tests.distributed_worker"]


def _run(command, **environment):
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


@pytest.mark.distributed
@pytest.mark.parametrize("processes", [2, 4])
def test_gradients_equal_one_process_over_the_whole_batch(tmp_path, tiny_bert, processes):
    output = torchrun(processes, [*WORKER, "gradients"], tmp_path / "output.txt", TINY_BERT=tiny_bert)
    assert output.count("gradients equal") == processes


@pytest.mark.distributed
def test_samplers_datasets_wrappers_and_queues_in_two_processes(tmp_path, tiny_bert, monkeypatch):
    from tests.distributed_worker import losses_of_datasets

    monkeypatch.setenv("TINY_BERT", tiny_bert)
    path = str(tmp_path / "weights.pt")
    output = torchrun(2, [*WORKER, "combinations"], tmp_path / "output.txt", WEIGHTS=path)
    assert output.count("combinations right") == 2
    saved = torch.load(path, weights_only=True)
    # The same steps in one process, with the rows of both.
    model, losses = losses_of_datasets()
    losses = torch.nn.ModuleDict(losses)
    optimizer = torch.optim.SGD(losses.parameters(), lr=0.05)
    for (name, own), (other_name, other) in saved["steps"]:
        assert name == other_name
        losses[name]([model.preprocess(a + b) for a, b in zip(own, other, strict=True)]).backward()
        torch.nn.utils.clip_grad_norm_(losses.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in losses.state_dict().items():
        assert torch.allclose(saved["weights"][name], tensor, atol=1e-5), name
    assert {name for (name, _), _ in saved["steps"]} == {"sentences", "pairs"}


@pytest.mark.distributed
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_training_in_two_processes_equals_one(tmp_path, tiny_bert, launcher, monkeypatch):
    from tests.distributed_worker import _trained

    monkeypatch.setenv("TINY_BERT", tiny_bert)
    weights = str(tmp_path / "weights.pt")
    if launcher == "torchrun":
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        output = _run([*launch, *WORKER, "training"], WEIGHTS=weights)
    else:
        options = [
            "--num_processes=2",
            "--num_machines=1",
            "--mixed_precision=no",
            "--dynamo_backend=no",
            "--multi_gpu",
        ]
        launch = [sys.executable, "-m", "accelerate.commands.launch", *options]
        output = _run([*launch, "--module", "tests.distributed_worker", "training"], WEIGHTS=weights)
    assert output.count("training equal") == 2
    # One process with batches twice as large sees the same rows in each step.
    _, loss = _trained(str(tmp_path), 8)
    saved = torch.load(weights, weights_only=True)
    for name, parameter in loss.named_parameters():
        assert torch.allclose(saved[name], parameter, atol=1e-5), (name, (saved[name] - parameter).abs().max())


@pytest.mark.distributed
def test_a_sharded_model_trains_saves_and_resumes_like_a_whole_one(tmp_path, tiny_bert, monkeypatch):
    from tests.distributed_worker import sharded_training

    monkeypatch.setenv("TINY_BERT", tiny_bert)
    path = str(tmp_path / "weights.pt")
    output = torchrun(2, [*WORKER, "sharded"], tmp_path / "output.txt", WEIGHTS=path)
    assert output.count("sharded right") == 2
    sharded = torch.load(path, weights_only=True)
    for kind, weights in sharded.items():
        # One process with batches twice as large sees the same rows in each step.
        _, loss = sharded_training(str(tmp_path / "whole"), 8, None, kind, optim="sgd")
        whole = loss.state_dict()
        assert weights.keys() == whole.keys()
        for name, tensor in whole.items():
            difference = (weights[name] - tensor).abs().max()
            assert difference < (1e-4 if kind == "bf16" else 1e-5), (kind, name, difference)
            assert weights[name].dtype == tensor.dtype
        saved = SentenceTransformer(str(tmp_path / kind), device="cpu")
        for name, tensor in saved.state_dict().items():
            assert torch.equal(weights[f"model.{name}"], tensor), (kind, name)
        assert "FSDP" not in (tmp_path / kind / "README.md").read_text()


def _dealt(sampler, processes, epoch=0):
    """The batches of every process, as accelerate deals them out."""
    sampler = EvenBatchSampler(RoundSampler(sampler, processes), processes)
    sampler.set_epoch(epoch)
    shards = [BatchSamplerShard(sampler, processes, rank, even_batches=False) for rank in range(processes)]
    assert len({len(shard) for shard in shards}) == 1
    dealt = [list(shard) for shard in shards]
    assert {len(batches) for batches in dealt} == {len(shards[0])}  # as many as the Trainer plans
    return dealt


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [4, 7, 8, 9, 16, 17, 23])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_process_gets_as_many_batches(processes, rows, drop_last):
    dealt = _dealt(DefaultBatchSampler(range(rows), 4, drop_last), processes)
    seen = [row for batches in dealt for batch in batches for row in batch]
    left_out = rows % (4 * processes) if drop_last else 0
    assert sorted(seen) == list(range(rows))[: rows - left_out]
    assert all(0 < len(batch) <= 4 for batches in dealt for batch in batches)
    last = [len(batches[-1]) for batches in dealt if batches]
    assert not last or max(last) - min(last) <= 1


def _own_sampler(dataset, batch_size, drop_last, **options):
    """A user's: batches of one to five rows, and a length that is a guess."""

    class Uneven(DefaultBatchSampler):
        def __iter__(self):
            rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(self.epoch)).tolist()
            while rows:
                size = 1 + len(rows) % 5
                yield rows[:size]
                rows = rows[size:]

    return Uneven(dataset, batch_size, drop_last)


@pytest.mark.parametrize("kind", [LengthGroupedBatchSampler, NoDuplicatesBatchSampler, _own_sampler])
@pytest.mark.parametrize(("processes", "drop_last"), [(2, False), (2, True), (3, False)])
def test_no_sampler_loses_or_repeats_rows(kind, processes, drop_last):
    # 50 texts, of which one stands there five times: no_duplicates makes short batches of it
    texts = [f"{'long ' * (row % 7)}text {row}" for row in range(50)] + ["text 0"] * 4
    dataset = Dataset.from_dict({"text": texts})
    for batch_size in (5, 16):
        for epoch in range(30):
            sampler = kind(dataset, batch_size=batch_size, drop_last=drop_last, generator=torch.Generator(), seed=3)
            dealt = _dealt(sampler, processes, epoch)
            batches = [batch for batches in dealt for batch in batches]
            seen = [row for batch in batches for row in batch]
            assert max(map(len, batches)) <= batch_size
            assert len(seen) == len(set(seen))
            if kind is LengthGroupedBatchSampler and not drop_last:
                assert sorted(seen) == list(range(54))
            if kind is NoDuplicatesBatchSampler:
                assert all(len({texts[row] for row in batch}) == len(batch) for batch in batches)


def test_batches_grouped_by_label_stay_whole():
    dataset = Dataset.from_dict({"text": ["x"] * 42, "label": [row % 3 for row in range(42)]})
    options = {"batch_size": 8, "drop_last": False, "valid_label_columns": ["label"], "generator": torch.Generator()}
    batches = [batch for batches in _dealt(GroupByLabelBatchSampler(dataset, **options), 2) for batch in batches]
    expected = list(GroupByLabelBatchSampler(dataset, **options))
    assert len(expected) % 2 == 1  # so one is left out
    assert sorted(batches) == sorted(expected[:-1])


@pytest.mark.parametrize("kind", [ProportionalBatchSampler, RoundRobinBatchSampler])
def test_all_processes_draw_the_same_dataset(kind):
    datasets = [
        Dataset.from_dict({"text": [f"{name} {row}" for row in range(n)]}) for name, n in (("a", 21), ("b", 13))
    ]
    samplers = [
        RoundSampler(LengthGroupedBatchSampler(dataset, 4, False, generator=torch.Generator()), 2)
        for dataset in datasets
    ]
    sampler = EvenBatchSampler(kind(ConcatDataset(datasets), samplers, torch.Generator()), 2)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        first, second = (list(BatchSamplerShard(sampler, 2, rank, even_batches=False)) for rank in range(2))
        assert len(first) == len(second) == len(sampler) // 2
        for own, other in zip(first, second, strict=True):
            assert len({row < 21 for row in (*own, *other)}) == 1, (own, other)
        seen = sorted(row for batch in (*first, *second) for row in batch)
        assert len(seen) == len(set(seen))
        if kind is ProportionalBatchSampler:
            assert seen == list(range(34))


def test_a_sampler_of_several_datasets_that_rebuilds_batches_is_refused():
    class Rebuilding(RoundRobinBatchSampler):
        def __iter__(self):
            for batch in super().__iter__():
                yield [int(row) for rows in batch for row in rows]

    datasets = [list(range(8))]
    sampler = Rebuilding(ConcatDataset(datasets), [RoundSampler(DefaultBatchSampler(datasets[0], 4, False), 2)])
    with pytest.raises(ValueError, match="Rebuilding does not pass on the batches"):
        list(EvenBatchSampler(sampler, 2))


def test_fewer_rows_than_processes_are_refused():
    with pytest.raises(ValueError, match="3 processes need at least one row each, but the dataset has 2"):
        RoundSampler(DefaultBatchSampler(range(2), 4, False), 3)
