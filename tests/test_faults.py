"""Training that is killed, stopped, or runs out of disk: a clear end, and the checkpoints before it intact."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from st_simcse.cli import train
from st_simcse.run_folder import checkpoints, last_complete_checkpoint

STEPS = 30


@pytest.fixture
def command(tmp_path, tiny_bert, sentences):
    """st-simcse train on a tiny model, saving every five of thirty steps."""
    (tmp_path / "train.txt").write_text("\n".join(sentences * 5))

    def options(output):
        return [
            *("--model_name_or_path", tiny_bert, "--train_file", str(tmp_path / "train.txt")),
            *("--output_dir", str(output), "--projection_head", "--pooling", "mean", "--bf16", "false"),
            *("--per_device_train_batch_size", "4", "--num_train_epochs", "3", "--learning_rate", "0.01"),
            *("--save_strategy", "steps", "--save_steps", "5", "--save_total_limit", "0"),
            *("--report_to", "none", "--disable_tqdm", "true"),
        ]

    return options


def _slow_run(options, delay):
    """The command line in a process of its own whose optimizer steps take their time, so that faults can hit them."""
    code = f"""
import sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
from st_simcse import cli
register_optimizer_step_post_hook(lambda *args: time.sleep({delay}))
cli.main(["train", *sys.argv[1:]])
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _wait_for(path, process, seconds=120):
    for _ in range(seconds * 20):
        if path.exists():
            return
        assert process.poll() is None, process.stdout.read()[-3000:]
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def _weights(folder):
    return load_file(Path(folder, "model.safetensors"))


def test_killed_and_resumed_ends_as_if_undisturbed(tmp_path, command):
    train.run(command(tmp_path / "whole"))
    process = _slow_run(command(tmp_path / "killed"), 0.2)
    _wait_for(tmp_path / "killed" / "checkpoint-10" / "trainer_state.json", process)
    time.sleep(0.5)  # into the steps after the checkpoint
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / f"checkpoint-{STEPS}").exists()

    train.run([*command(tmp_path / "killed"), "--resume_from_checkpoint", "last"])
    expected, resumed = _weights(tmp_path / "whole"), _weights(tmp_path / "killed")
    start = SentenceTransformer(str(tmp_path / "killed" / "checkpoint-5")).state_dict()
    assert any(not torch.equal(weight.cpu(), resumed[name.removeprefix("0.model.")]) for name, weight in start.items())
    for name, weight in expected.items():
        assert torch.equal(weight, resumed[name]), name
    heads = [load_file(tmp_path / run / f"checkpoint-{STEPS}" / "loss.safetensors") for run in ("whole", "killed")]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_sigterm_saves_a_checkpoint_and_stops(tmp_path, command):
    process = _slow_run(command(tmp_path / "out"), 0.5)
    _wait_for(tmp_path / "out" / "checkpoint-5" / "trainer_state.json", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output[-3000:]
    assert "after saving a checkpoint" in output
    last = Path(last_complete_checkpoint(tmp_path / "out"))
    step = json.loads((last / "trainer_state.json").read_text())["global_step"]
    assert 5 < step < STEPS
    train.run([*command(tmp_path / "out"), "--resume_from_checkpoint", "last"])
    train.run(command(tmp_path / "whole"))
    for name, weight in _weights(tmp_path / "whole").items():
        assert torch.equal(weight, _weights(tmp_path / "out")[name]), name


@pytest.mark.parametrize(("eval_steps", "evaluations"), [("0.25", [8, 16, 24, 30]), ("12", [12, 24, 30])])
def test_shares_of_steps_and_the_best_and_last_checkpoint(tmp_path, command, sentences, eval_steps, evaluations):
    pairs = zip(sentences, sentences[3:] + sentences[:3], strict=True)
    rows = [f"{first}\t{second}\t{score}" for score, (first, second) in enumerate(pairs)]
    (tmp_path / "dev.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    options = command(tmp_path / "out")
    for name in ("--save_strategy", "--save_steps", "--save_total_limit"):
        del options[options.index(name) : options.index(name) + 2]
    train.run([*options, "--dev_file", str(tmp_path / "dev.tsv"), "--eval_steps", eval_steps])
    left = checkpoints(tmp_path / "out")
    assert len(left) <= 2
    history = json.loads((tmp_path / "out" / "checkpoint-30" / "trainer_state.json").read_text())["log_history"]
    scores = {entry["step"]: entry["eval_dev_spearman_cosine"] for entry in history if "eval_runtime" in entry}
    assert list(scores) == evaluations
    assert tmp_path / "out" / f"checkpoint-{max(scores, key=scores.get)}" in left


def test_sigterm_between_seeds_and_resume(tmp_path, command):
    seeds = ["--seeds", "1", "2"]
    process = _slow_run([*command(tmp_path / "out"), *seeds], 0.1)
    _wait_for(tmp_path / "out" / "seed-1" / "checkpoint-10" / "trainer_state.json", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output[-3000:]
    assert "after saving a checkpoint" in output
    assert not (tmp_path / "out" / "seed-2").exists()
    train.run([*command(tmp_path / "out"), *seeds, "--resume_from_checkpoint", "last"])
    train.run([*command(tmp_path / "whole"), *seeds])
    for seed in ("seed-1", "seed-2"):
        for name, weight in _weights(tmp_path / "whole" / seed).items():
            assert torch.equal(weight, _weights(tmp_path / "out" / seed)[name]), (seed, name)


def test_damaged_checkpoints(tmp_path, command, caplog):
    train.run(command(tmp_path / "out"))
    expected = _weights(tmp_path / "out")

    # one that was cut off while it was saved is passed over
    newest = tmp_path / "out" / f"checkpoint-{STEPS}"
    (newest / "trainer_state.json").write_text('{"epoch": 1.0, "glo')
    train.run([*command(tmp_path / "out"), "--resume_from_checkpoint", "last"])
    assert "cut off while it was saved" in caplog.text
    assert all(torch.equal(weight, _weights(tmp_path / "out")[name]) for name, weight in expected.items())

    # one that was damaged later is named
    for name in ("model.safetensors", "loss.safetensors", "optimizer.pt", "rng_state.pth"):
        damaged = tmp_path / "damaged"
        shutil.copytree(tmp_path / "out" / "checkpoint-25", damaged)
        data = (damaged / name).read_bytes()
        (damaged / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match=r"damaged cannot be read and is probably damaged"):
            train.run([*command(tmp_path / "again"), "--resume_from_checkpoint", str(damaged)])
        shutil.rmtree(damaged)

    with pytest.raises(ValueError, match="has no complete checkpoint"):
        train.run([*command(tmp_path / "none"), "--resume_from_checkpoint", "last"])


@pytest.fixture
def tmpfs(tmp_path):
    """Mounts a small file system of its own."""
    mounted = []

    def mount(*options):
        folder = tmp_path / f"tmpfs{len(mounted)}"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)], check=True)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root, which CI has")


@needs_root
def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path, command, tmpfs):
    folder = tmpfs("size=1m")
    with pytest.raises(OSError, match=r"could not save .*checkpoint-\d+: .*earlier checkpoints are as they were"):
        train.run(command(folder))
    left = sorted(folder.glob("checkpoint-*"))
    assert left
    for checkpoint in left:  # each is whole
        train.run([*command(tmp_path / checkpoint.name), "--resume_from_checkpoint", str(checkpoint)])


@needs_root
def test_a_read_only_folder_is_refused_before_training(command, tmpfs):
    with pytest.raises(OSError, match="cannot write to the output folder .* Read-only file system"):
        train.run(command(tmpfs("ro") / "out"))


def test_a_file_in_place_of_the_folder(tmp_path, command):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        train.run(command(tmp_path / "file"))


def test_pickled_weights_and_remote_code_are_refused(tmp_path, tiny_bert, sentences):
    from st_simcse import build_model

    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_bert, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Harm()}, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights hold more than tensors"):
        build_model(str(pickled))

    remote = tmp_path / "remote"
    shutil.copytree(tiny_bert, remote)
    config = json.loads((remote / "config.json").read_text())
    del config["architectures"]
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (remote / "config.json").write_text(json.dumps(config))
    (remote / "code.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        build_model(str(remote))
    assert not (tmp_path / "harm").exists()
