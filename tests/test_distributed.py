import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sentence_transformers.base.sampler import DefaultBatchSampler

from st_simcse.distributed import EvenBatchSampler

ROOT = Path(__file__).parent.parent


def _run(command, **environment):
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


def _torchrun(processes, *words, **environment):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return _run([*launch, "-m", "tests.distributed_worker", *words], **environment)


@pytest.mark.parametrize("processes", [2, 4])
def test_gradients_equal_one_process_over_the_whole_batch(tiny_bert, processes):
    assert _torchrun(processes, "gradients", TINY_BERT=tiny_bert).count("gradients equal") == processes


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_training_in_two_processes_equals_one(tmp_path, tiny_bert, launcher, monkeypatch):
    from tests.distributed_worker import _trained

    monkeypatch.setenv("TINY_BERT", tiny_bert)
    weights = str(tmp_path / "weights.pt")
    if launcher == "torchrun":
        output = _torchrun(2, "training", WEIGHTS=weights)
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


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 3, 7, 8, 9, 16, 17, 23])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_process_gets_as_many_batches(processes, rows, drop_last):
    sampler = EvenBatchSampler(DefaultBatchSampler(range(rows), 4, drop_last), processes)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert len(batches) % processes == 0
    seen = [row for batch in batches for row in batch]
    left_out = rows % (4 * processes) if drop_last or rows % (4 * processes) < processes else 0
    assert sorted(seen) == list(range(rows))[: rows - left_out]
    last = [len(batch) for batch in batches[-processes:]]
    assert not last or max(last) - min(last) <= 1
