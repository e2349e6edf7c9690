"""Training that is killed, stopped, or runs out of disk: a clear end, and the checkpoints before it intact."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import httpx
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from st_simcse import SimCSETrainer, SimCSETrainingArguments, build_model, cli
from st_simcse.cli import train
from st_simcse.data import download as data
from st_simcse.data import hub_dataset as hub
from st_simcse.demo import save_tiny_transformer
from st_simcse.training.run_folder import checkpoint_folders, last_complete_checkpoint, rotate, sole_run
from tests.forked import start

STEPS = 30


@pytest.fixture(scope="module")
def command(tmp_path_factory, tiny_bert, sentences):
    """st-simcse train on a tiny model, saving every five of thirty steps."""
    train_file = tmp_path_factory.mktemp("data") / "train.txt"
    train_file.write_text("\n".join(sentences * 5))

    def options(output):
        return [
            *("--model_name_or_path", tiny_bert, "--train_file", str(train_file)),
            *("--output_dir", str(output), "--projection_head", "--pooling", "mean", "--bf16", "false"),
            *("--per_device_train_batch_size", "4", "--num_train_epochs", "3", "--learning_rate", "0.01"),
            *("--save_strategy", "steps", "--save_steps", "5", "--save_total_limit", "0"),
            *("--report_to", "none", "--disable_tqdm", "true"),
        ]

    return options


@pytest.fixture(scope="module")
def trained(tmp_path_factory, command):
    """What the command leaves undisturbed; to copy, not to change."""
    folder = tmp_path_factory.mktemp("trained")
    train.run(command(folder))
    return folder


@pytest.fixture
def interrupted(tmp_path, trained):
    """A folder with checkpoints 5, 10 and 15."""
    for step in (5, 10, 15):
        shutil.copytree(trained / f"checkpoint-{step}", tmp_path / "out" / f"checkpoint-{step}")
    return tmp_path / "out"


def _slow_run(options, delay, output=None):
    """The command line in a process of its own whose later steps take their time, so that faults can hit them.

    With ``output``, the file of what it prints, the process is forked.
    """
    code = f"""
import itertools, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
from st_simcse import SimCSETrainer, SimCSETrainingArguments, cli
steps = itertools.count(1)
register_optimizer_step_post_hook(lambda *args: time.sleep({delay} * (next(steps) > 5)))
cli.main(["train", *sys.argv[1:]])
"""
    if output:
        return start(["-c", code, *options], output)
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
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def _weights(folder):
    return load_file(Path(folder, "model.safetensors"))


def _contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_killed_and_resumed_ends_as_if_undisturbed(tmp_path, command, trained):
    process = _slow_run(command(tmp_path / "killed"), 0.2, tmp_path / "output.txt")
    _wait_for(tmp_path / "killed" / "checkpoint-10" / "trainer_state.json", process)
    with pytest.raises(OSError, match="Another run is training into .*choose a different output_dir"):
        train.run(command(tmp_path / "killed"))
    time.sleep(0.5)  # into the steps after the checkpoint
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / f"checkpoint-{STEPS}").exists()

    train.run([*command(tmp_path / "killed"), "--resume_from_checkpoint", "last"])
    expected, resumed = _weights(trained), _weights(tmp_path / "killed")
    start = SentenceTransformer(str(tmp_path / "killed" / "checkpoint-5")).state_dict()
    assert any(not torch.equal(weight.cpu(), resumed[name.removeprefix("0.model.")]) for name, weight in start.items())
    for name, weight in expected.items():
        assert torch.equal(weight, resumed[name]), name
    heads = [load_file(run / f"checkpoint-{STEPS}" / "loss.safetensors") for run in (trained, tmp_path / "killed")]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_and_stops(tmp_path, command, trained, number):
    process = _slow_run(command(tmp_path / "out"), 0.5)
    _wait_for(tmp_path / "out" / "checkpoint-5" / "trainer_state.json", process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, output[-3000:]  # so that `train && evaluate` does not go on
    assert "after saving a checkpoint" in output
    last = Path(last_complete_checkpoint(tmp_path / "out"))
    step = json.loads((last / "trainer_state.json").read_text())["global_step"]
    assert 5 < step < STEPS
    train.run([*command(tmp_path / "out"), "--resume_from_checkpoint", "last"])
    for name, weight in _weights(trained).items():
        assert torch.equal(weight, _weights(tmp_path / "out")[name]), name


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path, command):
    process = _slow_run(command(tmp_path / "out"), 2, tmp_path / "output.txt")
    _wait_for(tmp_path / "out" / "checkpoint-5" / "trainer_state.json", process)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert output.splitlines()[-1] == "st-simcse train: interrupted"
    assert "Traceback" not in output
    assert [path.name for path in checkpoint_folders(tmp_path / "out")] == ["checkpoint-5"]


@pytest.mark.parametrize("name", ["train", "evaluate", "demo"])
def test_ctrl_c_is_one_line(monkeypatch, capsys, name):
    def run(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"st_simcse.cli.{name}.run", run)
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--model_name_or_path", "x", "--train_file", __file__])
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"st-simcse {name}: interrupted\n"


def test_a_network_that_fails_is_one_line(monkeypatch):
    def run(argv):
        raise httpx.ReadTimeout("the read operation timed out")

    monkeypatch.setattr("st_simcse.cli.data.run", run)
    with pytest.raises(
        SystemExit, match=r"^st-simcse data: the network failed \(the read operation timed out\). Check"
    ):
        cli.main(["data"])


def test_a_download_that_breaks_off_says_what_was_not_downloaded(monkeypatch):
    def broken(*args, **options):
        raise httpx.RemoteProtocolError("peer closed connection")

    monkeypatch.setattr(hub, "_ask_hub", lambda name: None)
    for name in ("hf_hub_download", "load_dataset"):
        monkeypatch.setattr(hub, name, broken)
    message = r"did not finish \(peer closed connection\): check the network and try again"
    with pytest.raises(OSError, match=rf"^the download of a.tar of owner/name {message}"):
        hub.hub_file("owner/name", "a.tar")
    with pytest.raises(OSError, match=rf"^the download of owner/name \(train\) {message}"):
        hub.HubDataset("owner/name").load()


@pytest.mark.parametrize("kept", [100, 5_000])  # within the first header, and within a file
def test_a_damaged_archive_is_named(tmp_path, monkeypatch, kept):
    (tmp_path / "a.txt").write_bytes(b"0" * 20_000)
    archive = tmp_path / "senteval.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "a.txt", "a.txt")
    archive.write_bytes(archive.read_bytes()[:kept])
    monkeypatch.setattr(data, "hub_file", lambda name, file: archive)
    with pytest.raises(ValueError, match=f"{archive} is damaged .*: delete it, and the next call downloads it again"):
        data._fetch(tmp_path, "senteval.tar", tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize(("eval_steps", "evaluations"), [("0.25", [8, 16, 24, 30]), ("12", [12, 24, 30])])
def test_shares_of_steps_and_the_best_and_last_checkpoint(tmp_path, command, sentences, eval_steps, evaluations):
    pairs = zip(sentences, sentences[3:] + sentences[:3], strict=True)
    rows = [f"{first}\t{second}\t{score}" for score, (first, second) in enumerate(pairs)]
    (tmp_path / "dev.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    options = command(tmp_path / "out")
    for name in ("--save_strategy", "--save_steps", "--save_total_limit"):
        del options[options.index(name) : options.index(name) + 2]
    train.run([*options, "--dev_file", str(tmp_path / "dev.tsv"), "--eval_steps", eval_steps])
    left = checkpoint_folders(tmp_path / "out")
    assert len(left) <= 2
    history = json.loads((tmp_path / "out" / "checkpoint-30" / "trainer_state.json").read_text())["log_history"]
    scores = {entry["step"]: entry["eval_dev_spearman_cosine"] for entry in history if "eval_runtime" in entry}
    assert list(scores) == evaluations
    assert tmp_path / "out" / f"checkpoint-{max(scores, key=scores.get)}" in left


@pytest.mark.slow
def test_sigterm_between_seeds_and_resume(tmp_path, command):
    seeds = ["--seeds", "1", "2"]
    process = _slow_run([*command(tmp_path / "out"), *seeds], 0.1, tmp_path / "output.txt")
    _wait_for(tmp_path / "out" / "seed-1" / "checkpoint-10" / "trainer_state.json", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output[-3000:]
    assert "after saving a checkpoint" in output
    assert not (tmp_path / "out" / "seed-2").exists()
    train.run([*command(tmp_path / "out"), *seeds, "--resume_from_checkpoint", "last"])
    train.run([*command(tmp_path / "whole"), *seeds])
    for seed in ("seed-1", "seed-2"):
        for name, weight in _weights(tmp_path / "whole" / seed).items():
            assert torch.equal(weight, _weights(tmp_path / "out" / seed)[name]), (seed, name)


@pytest.mark.slow
def test_damaged_checkpoints(tmp_path, command, trained, caplog):
    shutil.copytree(trained, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()

    # one that was cut off while it was saved is passed over
    newest = tmp_path / "out" / f"checkpoint-{STEPS}"
    (newest / "trainer_state.json").write_text('{"epoch": 1.0, "glo')
    with pytest.raises(ValueError, match=f"checkpoint-{STEPS} was interrupted while it was saved"):
        train.run([*command(tmp_path / "out"), "--resume_from_checkpoint", str(newest)])
    train.run([*command(tmp_path / "out"), "--resume_from_checkpoint", "last"])
    assert "interrupted while it was saved" in caplog.text
    assert all(torch.equal(weight, _weights(tmp_path / "out")[name]) for name, weight in _weights(trained).items())

    (newest / "trainer_state.json").write_text("[1]")
    assert last_complete_checkpoint(tmp_path / "out") == str(tmp_path / "out" / "checkpoint-25")

    # one that was damaged later is named
    for name in ("model.safetensors", "loss.safetensors", "optimizer.pt", "rng_state.pth", "simcse_run.json"):
        damaged = tmp_path / "damaged"
        shutil.copytree(tmp_path / "out" / "checkpoint-25", damaged)
        data = (damaged / name).read_bytes()
        (damaged / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match=r"damaged(/\S+)? cannot be read and is probably damaged"):
            train.run([*command(tmp_path / "again"), "--resume_from_checkpoint", str(damaged)])
        shutil.rmtree(damaged)

    with pytest.raises(ValueError, match="has no complete checkpoint"):
        train.run([*command(tmp_path / "none"), "--resume_from_checkpoint", "last"])


@pytest.mark.parametrize("with_record", [True, False])  # without: as the plain trainer saves it
def test_incomplete_checkpoints_are_refused(tmp_path, command, trained, with_record):
    names = ["optimizer.pt", "scheduler.pt", "rng_state.pth"]
    for name in [*names, "loss.safetensors"] if with_record else names:
        incomplete = tmp_path / name
        shutil.copytree(trained / "checkpoint-25", incomplete)
        (incomplete / name).unlink()
        if not with_record:
            (incomplete / "simcse_run.json").unlink()
        with pytest.raises(ValueError, match=f"is not complete: {name} is missing"):
            train.run([*command(tmp_path / "out"), "--resume_from_checkpoint", str(incomplete)])


def test_a_state_of_another_version_is_named(interrupted, command):
    path = interrupted / "checkpoint-15" / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"novelty": 1}))
    with pytest.raises(
        ValueError, match="a different version of transformers: the installed version does not know novelty"
    ):
        train.run([*command(interrupted), "--resume_from_checkpoint", "last"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--train_file", "TEXTS"], "data.rows: 40 -> 39"),
        (["--train_file", "TRIPLETS"], "objective.loss.class: .*Sup"),
        (["--learning_rate", "0.02"], "arguments.learning_rate: 0.01 -> 0.02"),
        (["--seed", "7"], "arguments.seed: 42 -> 7"),
        (["--temperature", "0.1"], "objective.loss.temperature: 0.05 -> 0.1"),
        (["--pooling", "cls"], r"model.modules.1.pooling_mode: .*mean.* -> .*cls"),
        (["--momentum_queue", "8"], "objective.loss.options: .*MomentumQueue"),
        (["--num_train_epochs", "2"], "arguments.num_train_epochs: 3.0 -> 2.0"),
        (["--max_seq_length", "5"], "max_.*length: .* -> 5"),
        (["--model_name_or_path", "WIDER"], "model.transformer.hidden_size: 32 -> 48"),
        (["--optim", "sgd"], "arguments.optim: .*adamw.* -> .*sgd"),
        (["HEADLESS"], "projection_head"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, command, interrupted, sentences, changes, named):
    options = command(interrupted)
    files = {"TEXTS": tmp_path / "other.txt", "TRIPLETS": tmp_path / "pairs.csv", "WIDER": tmp_path / "wider"}
    files["TEXTS"].write_text("\n".join((sentences * 5)[1:]))
    files["TRIPLETS"].write_text("\n".join(["sent0,sent1", *(f"a {row},b {row}" for row in range(175))]))
    if "WIDER" in changes:
        save_tiny_transformer(files["WIDER"], sentences, width=48, layers=2)
    if changes == ["HEADLESS"]:
        changes = options.remove("--projection_head") or []
    before = _contents(interrupted)
    changes = [str(files.get(word, word)) for word in changes]
    with pytest.raises(
        ValueError, match=f"(?s)checkpoint-15 was saved by a run that differs.*{named}.*--resume_with_changes"
    ):
        train.run([*options, *changes, "--resume_from_checkpoint", "last"])
    assert _contents(interrupted) == before


@pytest.mark.slow
def test_what_cannot_be_taken_over_with_changes_either(tmp_path, command, interrupted, sentences):
    save_tiny_transformer(tmp_path / "wider", sentences, width=48, layers=2)
    for changes, message in (
        (["--optim", "sgd"], "was saved with a different optimizer"),
        (["--model_name_or_path", str(tmp_path / "wider")], "was saved with a different model"),
        (["--max_steps", "12"], "was saved at step 15, but this run ends after step 12"),
    ):
        with pytest.raises(ValueError, match=message):
            train.run([*command(interrupted), *changes, "--resume_from_checkpoint", "last", "--resume_with_changes"])


def test_new_checkpoints_stay_whatever_the_dates_of_the_files(interrupted, command):
    for path in checkpoint_folders(interrupted):
        os.utime(path, (4e9, 4e9))
    train.run([*command(interrupted), "--save_total_limit", "2", "--resume_from_checkpoint", "last"])
    assert [path.name for path in checkpoint_folders(interrupted)] == ["checkpoint-25", "checkpoint-30"]


def test_rotation(tmp_path):
    def left(newest, best, limit, steps=(5, 10, 15, 20)):
        for step in steps:
            (tmp_path / f"checkpoint-{step}").mkdir(exist_ok=True)
        rotate(tmp_path / f"checkpoint-{newest}", best and str(tmp_path / f"checkpoint-{best}"), limit)
        return [int(path.name.split("-")[1]) for path in checkpoint_folders(tmp_path)]

    assert left(20, None, 0) == left(20, None, None) == left(20, None, -1) == left(20, None, 4) == [5, 10, 15, 20]
    assert left(20, 5, 2) == [5, 20]
    assert left(20, 5, 1) == [5, 20]
    assert left(10, None, 2) == [5, 10]  # later ones are an earlier run's
    assert left(5, None, 1) == [5]


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


@pytest.mark.slow
@needs_root
def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path, command, tmpfs):
    folder = tmpfs("size=1m")
    with pytest.raises(OSError, match=r"Could not save .*checkpoint-\d+: .*earlier checkpoints are unchanged"):
        train.run(command(folder))
    left = sorted(folder.glob("checkpoint-*"))
    assert left
    for checkpoint in left:  # each is whole
        train.run([*command(tmp_path / checkpoint.name), "--resume_from_checkpoint", str(checkpoint)])


@needs_root
def test_a_failed_save_leaves_the_complete_checkpoints(command, interrupted, tmpfs):
    taken = sum(-(-path.stat().st_size // 4096) * 4096 for path in interrupted.rglob("*") if path.is_file())
    folder = tmpfs(f"size={taken + 16384}")
    shutil.copytree(interrupted, folder, dirs_exist_ok=True)
    before = _contents(folder)
    first = str(folder / "checkpoint-5")
    with pytest.raises(OSError, match=r"checkpoint-10: .*needs about [\d.]+ MB, and 0.0 MB are free"):
        train.run([*command(folder), "--resume_from_checkpoint", first])
    assert _contents(folder) == before


@needs_root
def test_no_room_for_the_model(tmp_path, command, trained, tmpfs, model):
    folder = tmpfs("size=64k")
    with pytest.raises(OSError, match=f"Could not save the model to {folder}: .* MB are free") as failed:
        train.run([*command(folder), "--save_strategy", "no"])
    assert not list(folder.iterdir())
    rescued = Path(str(failed.value).split("so they were saved to ")[1])
    for name, weight in _weights(trained).items():
        assert torch.equal(weight, _weights(rescued)[name]), name
    shutil.rmtree(rescued)


@needs_root
def test_no_room_for_a_model_that_a_checkpoint_has(tmp_path, sentences, tmpfs, model):
    folder = tmpfs("size=4m")
    data = Dataset.from_dict({"sentence": sentences})
    arguments = SimCSETrainingArguments(str(folder), max_steps=1, bf16=False, report_to="none", save_strategy="steps")
    trainer = SimCSETrainer(model, arguments, data)
    trainer.save_model()
    before = _weights(folder)
    trainer.train()
    free = shutil.disk_usage(folder).free
    (folder / "filler").write_bytes(b"0" * (free - free % 4096))
    with pytest.raises(OSError, match=r"No weights are lost: .*checkpoint-1 is complete"):
        trainer.save_model()
    assert all(torch.equal(weight, _weights(folder)[name]) for name, weight in before.items())


def test_a_folder_is_free_after_an_error(tmp_path):
    (tmp_path / "_unfinished").mkdir()
    with pytest.raises(ValueError, match="'x'"), sole_run(tmp_path):
        int("x")
    with sole_run(tmp_path), sole_run(tmp_path):  # of the same program
        assert not (tmp_path / "_unfinished").exists()
    assert not list(tmp_path.iterdir())


@needs_root
def test_a_read_only_folder_is_refused_before_training(command, tmpfs):
    with pytest.raises(OSError, match="Cannot write to the output folder .* Read-only file system"):
        train.run(command(tmpfs("ro") / "out"))


def test_a_file_in_place_of_the_folder(tmp_path, command):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Cannot write to the output folder"):
        train.run(command(tmp_path / "file"))


def test_pickled_weights_and_remote_code_are_refused(tmp_path, tiny_bert, sentences):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_bert, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Harm()}, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights contain more than tensors"):
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
