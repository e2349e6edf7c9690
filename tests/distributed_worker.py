"""What test_distributed.py runs under torchrun: each check compares several processes with one over the whole batch."""

import contextlib
import fcntl
import functools
import io
import os
import random
import sys
import tempfile

import pytest
import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss, MatryoshkaLoss
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from conftest import SENTENCES
from st_simcse import (
    DropoutFreeNegatives,
    MaskedLanguageModel,
    MomentumQueue,
    OwnNegativeWeight,
    SentenceReader,
    SharedLayers,
    SimCSETrainer,
    SimCSETrainingArguments,
    SupSimCSELoss,
    UnsupSimCSELoss,
    build_model,
)
from st_simcse.cli import train
from st_simcse.losses.collectives import any_process, averaged_gradients
from st_simcse.objective import cross_entropy
from st_simcse.training.run_folder import LOCK, UNFINISHED
from tests.inputs import without_dropout

ROWS = [f"{first} {second}" for first in SENTENCES for second in SENTENCES][::3]
COLUMNS = [ROWS, ROWS[1:] + ROWS[:1], ROWS[2:] + ROWS[:2]]


def _model():
    return without_dropout(build_model(os.environ["TINY_BERT"], pooling="mean", device="cpu")).double().train()


def _loss(model, supervised, options, gather):
    torch.manual_seed(0)
    return (SupSimCSELoss if supervised else UnsupSimCSELoss)(model, gather_across_devices=gather, **options)


def _gradients(loss, columns):
    with averaged_gradients([]):  # the head's are averaged below
        if loss.sources:  # fill it first
            loss([loss.model_for_tokens.preprocess(column[::-1]) for column in columns]).backward()
            loss.zero_grad()
        value = loss([loss.model_for_tokens.preprocess(column) for column in columns])
        value.backward()
    names = (name.replace(".module", "") for name, _ in loss.named_parameters())
    grads = (parameter.grad for parameter in loss.parameters())
    return value.detach(), {name: grad for name, grad in zip(names, grads, strict=True) if grad is not None}


def check_gradients():
    """Loss and gradients of shards of unequal size equal those of one process, in every combination."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    # the first process gets two rows more than the last ones
    cuts = [0] + [(len(ROWS) * (i + 1)) // processes + (2 if i < processes - 1 else 0) for i in range(processes)]
    own = slice(cuts[rank], cuts[rank + 1])
    assert cuts[1] - cuts[0] != cuts[-1] - cuts[-2]
    for supervised, options in [
        (True, {"options": [OwnNegativeWeight(2.0)]}),
        (True, {"mini_batch_size": 3, "projection_head": True}),
        (False, {"symmetric": True}),
        (False, {"projection_head": True}),
        (False, {"mini_batch_size": 3}),
        (False, {"options": [MomentumQueue(len(ROWS)), DropoutFreeNegatives()]}),
    ]:
        for rows in (4, cross_entropy.TILE_ROWS):  # several tiles, then one
            cross_entropy.TILE_ROWS, kept = rows, cross_entropy.TILE_ROWS
            columns = COLUMNS if supervised else COLUMNS[:2]
            alone = _loss(_model(), supervised, options, gather=False)
            alone.model_for_tokens = alone.model
            value, expected = _gradients(alone, columns)

            model = _model()
            shared = _loss(model, supervised, options, gather=True)
            shared.model_for_tokens = model
            shared.model = DistributedDataParallel(model, find_unused_parameters=True)
            part, gradients = _gradients(shared, [column[own] for column in columns])
            dist.all_reduce(part)
            assert abs(part / processes - value) < 1e-5, (options, part / processes, value)
            gradients = {name: grad for name, grad in gradients.items() if not name.startswith("model_for_tokens")}
            for name, grad in expected.items():
                if name.startswith("model_for_tokens"):
                    continue
                got = gradients[name]
                if name.startswith("projection_head"):  # outside DistributedDataParallel
                    dist.all_reduce(got)
                    got = got / processes
                assert torch.allclose(got, grad, atol=1e-5), (options, name, (got - grad).abs().max())
            cross_entropy.TILE_ROWS = kept
    print("gradients equal")


def _trained(folder, batch, trainer=SimCSETrainer, seen=None, gradient=1.0, **options):
    model = without_dropout(build_model(os.environ["TINY_BERT"], pooling="mean", device="cpu"))
    model[0].model.embeddings.word_embeddings.weight.register_hook(lambda own: gradient * own)
    torch.manual_seed(int(os.environ.get("RANK", 0)))  # heads begin differently
    loss = UnsupSimCSELoss(model, projection_head=True, gather_across_devices=True)
    if seen is not None:
        loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]["input_ids"].clone()))
    arguments = SimCSETrainingArguments(
        folder,
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.1,  # of model and head together
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    training = trainer(model=model, args=arguments, train_dataset=Dataset.from_dict({"sentence": ROWS}), loss=loss)
    training.train()
    return training, loss


def check_training():
    """The Trainer's shards are disjoint and complete, and the weights end equal in all processes."""
    with tempfile.TemporaryDirectory() as folder:
        seen = []
        training, loss = _trained(folder, 4, seen=seen)
        rank, processes = dist.get_rank(), dist.get_world_size()
        texts = [text for ids in seen for text in loss_texts(training, ids)]
        gathered = [None] * processes
        dist.all_gather_object(gathered, (texts, len(seen)))
        assert len({steps for _, steps in gathered}) == 1, gathered
        everything = sorted(text for texts, _ in gathered for text in texts)
        # every row once, whichever process had it
        assert everything == sorted(row.lower() for row in ROWS), everything
        for name, parameter in loss.named_parameters():
            other = parameter.detach().clone()
            dist.broadcast(other, src=0)
            assert torch.equal(parameter, other), name
        with pytest.raises(ValueError, match="Train with SimCSETrainer"):
            _trained(folder, 4, trainer=SentenceTransformerTrainer)
        with pytest.raises(ValueError, match="The gradient of step 1 is NaN or infinite. Training stopped"):
            _trained(folder, 4, gradient=float("nan"))
    if rank == 0:
        torch.save(
            {name.replace("module.", ""): p.detach() for name, p in loss.named_parameters()}, os.environ["WEIGHTS"]
        )
    print("training equal")


def loss_texts(training, ids):
    tokenizer = training.model.tokenizer
    return [text.replace(" .", ".") for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def check_combinations():
    """Several datasets, samplers, wrapped losses and the queue, one after the other in the same processes."""
    folder = os.path.dirname(os.environ["WEIGHTS"])  # the same for all
    for name, check in list(globals().items()):
        if name.startswith("check_in_two_"):
            check(os.path.join(folder, name))
    print("combinations right")


def _arguments(folder, **options):
    options = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "save_strategy": "no", "bf16": False} | options
    return SimCSETrainingArguments(folder, report_to="none", disable_tqdm=True, **options)


def _tiny():
    torch.manual_seed(0)
    return build_model(os.environ["TINY_BERT"], pooling="mean", device="cpu")


def _everywhere(value):
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def check_in_two_gather_exchanges_sizes_once(folder):
    _arguments(folder)  # starts the processes' group
    loss = SupSimCSELoss(_tiny(), gather_across_devices=True)
    rows = 2 + dist.get_rank()
    calls, all_gather = [], dist.all_gather
    dist.all_gather = lambda *args, **kwargs: calls.append(0) or all_gather(*args, **kwargs)
    loss([loss.model.preprocess(column[:rows]) for column in COLUMNS]).backward()
    dist.all_gather = all_gather
    # three columns of embeddings, three of keys, and the numbers of rows
    assert len(calls) == 7, calls


def check_in_two_gradients_are_averaged(folder):
    """A process without a gradient counts as zero. A parameter without a gradient in every process keeps none."""
    _arguments(folder)  # starts the processes' group
    rank = dist.get_rank()
    alone, none, one, both = (torch.nn.Parameter(torch.zeros(2)) for _ in range(4))
    with averaged_gradients([alone]):
        alone.grad = torch.tensor([0.0, 4.0 * rank])
    with averaged_gradients([none, one, both]):
        both.grad = torch.tensor([1.0, 2.0]) * (rank + 1)
        if rank == 1:
            one.grad = torch.tensor([4.0, 6.0])
    assert none.grad is None
    assert [parameter.grad.tolist() for parameter in (alone, one, both)] == [[0, 2], [2, 3], [1.5, 3]]


def check_in_two_a_flag_of_one_process_counts_for_all(folder):
    _arguments(folder)  # starts the processes' group
    assert any_process(dist.get_rank() == 1) is True
    assert any_process(False) is False


def losses_of_datasets():
    model = without_dropout(_tiny()).train()
    options = {"projection_head": True, "gather_across_devices": True}
    return model, {"sentences": UnsupSimCSELoss(model, **options), "pairs": SupSimCSELoss(model, **options)}


def check_in_two_datasets(folder):
    """All processes draw the same dataset in a step; the test goes the same steps with the rows of both."""
    seen = []

    class Watching(SimCSETrainer):
        def compute_loss(self, model, inputs, **options):
            features, _ = self.collect_features(dict(inputs))
            seen.append((inputs["dataset_name"], [loss_texts(self, column["input_ids"]) for column in features]))
            return super().compute_loss(model, inputs, **options)

    data = {
        "sentences": Dataset.from_dict({"sentence": ROWS}),
        "pairs": Dataset.from_dict({"anchor": ROWS[:13], "positive": ROWS[1:14]}),
    }
    model, losses = losses_of_datasets()
    options = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 0.1}
    trainer = Watching(model, _arguments(folder, num_train_epochs=2, **options), data, None, losses)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps == 2 * (3 + 2)
    weights = torch.nn.ModuleDict(losses).state_dict()
    for name, tensor in weights.items():
        one, other = _everywhere(tensor)
        assert torch.equal(one, other), name
    weights = {name.replace("module.", ""): tensor for name, tensor in weights.items()}
    steps = list(zip(*_everywhere(seen), strict=True))
    if dist.get_rank() == 0:
        torch.save({"weights": weights, "steps": steps}, os.environ["WEIGHTS"])


def check_in_two_samplers(folder):
    """Planned steps, batches no larger than asked for, every row once."""
    for options in ({"group_by_length": True}, {"batch_sampler": "no_duplicates"}):
        for rows in (ROWS, ROWS + ROWS[:3]):
            sizes = []
            loss = UnsupSimCSELoss(_tiny(), gather_across_devices=True)
            count = functools.partial(lambda sizes, _, inputs: sizes.append(len(inputs[0][0]["input_ids"])), sizes)
            loss.register_forward_pre_hook(count)
            data = Dataset.from_dict({"sentence": rows})
            trainer = SimCSETrainer(loss.model, _arguments(folder, **options), data, data, loss)
            trainer.train()
            assert trainer.state.global_step == trainer.state.max_steps
            assert max(sizes) <= 4, sizes
            if rows is ROWS:
                assert sum(map(sum, _everywhere(sizes))) == len(rows)
            one, other = _everywhere(trainer.evaluate()["eval_loss"])
            assert one == other > 0


def check_in_two_wrappers(folder):
    for wrap, options in (
        (lambda model, loss: MatryoshkaLoss(model, loss, [32, 16]), {"options": [MaskedLanguageModel(0.1)]}),
        (AdaptiveLayerLoss, {"projection_head": True}),
    ):
        model = _tiny()
        loss = wrap(model, SupSimCSELoss(model, **options))
        data = Dataset.from_dict({"anchor": ROWS, "positive": ROWS[1:] + ROWS[:1]})
        SimCSETrainer(model, _arguments(folder, max_steps=2), data, None, loss).train()
        for name, parameter in loss.named_parameters():
            one, other = _everywhere(parameter.detach())
            assert torch.equal(one, other), name


def check_in_two_resume(folder):
    """Two epochs, resumed in the middle of the second: every process's weights and queue end as undisturbed."""

    def trained(folder, **options):
        model = _tiny()
        torch.manual_seed(0)
        loss = UnsupSimCSELoss(model, projection_head=True, options=[MomentumQueue(6)])
        data = Dataset.from_dict({"sentence": ROWS})
        saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
        arguments = _arguments(folder, num_train_epochs=2, learning_rate=0.01, **saving)
        SimCSETrainer(model, arguments, data, None, loss).train(**options)
        return {name: tensor.clone() for name, tensor in loss.state_dict().items()}

    expected = trained(folder)
    queues = _everywhere(expected["sources.momentum_queue.embeddings"])
    assert not torch.equal(*queues)  # each has its own
    for step in (2, 3, 4):
        resumed = trained(f"{folder}-{step}", resume_from_checkpoint=os.path.join(folder, f"checkpoint-{step}"))
        for name, tensor in expected.items():
            assert torch.equal(tensor, resumed[name]), (step, name)

    arguments = _arguments(folder, num_train_epochs=2, learning_rate=0.02)
    trainer = SimCSETrainer(_tiny(), arguments, Dataset.from_dict({"sentence": ROWS}))
    for error in (_refusal(trainer, resume_from_checkpoint=True), _refusal(trainer, taken=folder)):
        assert all(_everywhere(error)), error
    assert "Another run is training" in error


def _refusal(trainer, taken=None, **options):
    """Why training does not begin; with ``taken``, while another run holds that folder."""
    with open(os.path.join(taken, LOCK), "w") if taken and dist.get_rank() == 0 else contextlib.nullcontext() as file:
        if file:
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            trainer.train(**options)
        except (OSError, ValueError) as error:
            dist.barrier()
            return str(error)


def check_in_two_streams(folder):
    """One file's batches go to the processes in turn; of several files each process reads its own."""
    files = [f"{folder}-{part}.txt" for part in range(2)]
    if dist.get_rank() == 0:
        for path, rows in zip(files, (ROWS[:9], ROWS[9:]), strict=True):
            with open(path, "w") as file:
                file.write("\n".join(rows))
    dist.barrier()
    options = {"max_steps": 4, "per_device_train_batch_size": 2}
    for names in (files[1:], files):
        seen = []
        loss = UnsupSimCSELoss(_tiny(), gather_across_devices=True)
        loss.register_forward_pre_hook(functools.partial(lambda seen, _, inputs: seen.append(inputs[0][0]), seen))
        stream = SentenceReader().get_iterable_dataset(*names)
        trainer = SimCSETrainer(loss.model, _arguments(folder, **options), stream, None, loss)
        trainer.train()
        texts = _everywhere([text for column in seen[:3] for text in loss_texts(trainer, column["input_ids"])])
        expected = [text.lower() for text in (ROWS[9:21] if names != files else ROWS[:6] + ROWS[9:15])]
        assert sorted(texts[0] + texts[1]) == sorted(expected), texts
        for parameter in loss.model.parameters():
            assert torch.equal(*_everywhere(parameter.detach()))
    for refused in ({"gradient_accumulation_steps": 2}, {"save_strategy": "epoch"}):
        with pytest.raises(ValueError, match="read the 2 files of the stream separately"):
            SimCSETrainer(_tiny(), _arguments(folder, **(options | refused)), stream)


def check_in_two_fsdp_is_not_left_out(folder):
    with pytest.raises(ValueError, match="Accelerate does not shard on this device"):
        SimCSETrainer(_tiny(), _arguments(folder, fsdp=True), Dataset.from_dict({"sentence": ROWS}))
    del os.environ["ACCELERATE_USE_FSDP"]  # which transformers has set


# What is trained sharded and whole: a loss by name, and further training arguments.
SHARDED = {
    "head": (lambda model: UnsupSimCSELoss(model, projection_head=True, gather_across_devices=True), {}),
    "bf16": (lambda model: UnsupSimCSELoss(model, projection_head=True, gather_across_devices=True), {"bf16": True}),
    "shared layers": (lambda model: UnsupSimCSELoss(model, options=[SharedLayers(1)], gather_across_devices=True), {}),
    "accumulated": (
        lambda model: UnsupSimCSELoss(model, options=[DropoutFreeNegatives()], gather_across_devices=True),
        {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
    ),
    "matryoshka": (
        lambda model: MatryoshkaLoss(model, UnsupSimCSELoss(model, gather_across_devices=True), [32, 16]),
        {},
    ),
    "adaptive layer": (
        lambda model: AdaptiveLayerLoss(model, UnsupSimCSELoss(model, gather_across_devices=True)),
        {},
    ),
}


def sharded_training(folder, batch, resume=None, kind="head", **options):
    model = without_dropout(_tiny())
    torch.manual_seed(int(os.environ.get("RANK", 0)))  # heads begin differently
    make_loss, more = SHARDED[kind]
    loss, options = make_loss(model), options | more
    random.seed(0)  # of AdaptiveLayerLoss
    data = Dataset.from_dict({"sentence": ROWS})
    options = {"learning_rate": 0.05, "weight_decay": 0.1, "max_grad_norm": 0.1, "num_train_epochs": 2} | options
    trainer = SimCSETrainer(model, _arguments(folder, per_device_train_batch_size=batch, **options), data, data, loss)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, loss


def _whole(loss):
    tensors = loss.state_dict().items()
    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone() for name, tensor in tensors}


def check_sharded():
    """FSDP2 trains, saves and resumes; the test compares with one process."""
    folder = os.path.dirname(os.environ["WEIGHTS"])
    # Accelerate shards on accelerators alone: here the CPU counts as one.
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)
    dist.init_process_group("gloo")
    saved = {}
    for kind in SHARDED:
        trainer, loss = sharded_training(f"{folder}/sgd", 4, None, kind, fsdp=True, optim="sgd")
        assert all(isinstance(weight, DTensor) for weight in trainer.model.parameters())
        saved[kind] = _whole(loss)
        for name, tensor in saved[kind].items():
            assert torch.equal(*_everywhere(tensor)), (kind, name)
        one, other = _everywhere(trainer.evaluate()["eval_loss"])
        assert one == other > 0
        trainer.save_model(f"{folder}/{kind}")
    if dist.get_rank() == 0:
        torch.save(saved, os.environ["WEIGHTS"])

    saving = {"fsdp": True, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    expected = _whole(sharded_training(f"{folder}/adamw", 4, **saving)[1])
    resumed = _whole(sharded_training(f"{folder}/resumed", 4, f"{folder}/adamw/checkpoint-4", **saving)[1])
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name
    print("sharded right")


def check_in_two_command_line(folder):
    """One process writes and prints."""
    text = os.path.join(os.path.dirname(folder), "train.txt")
    if dist.get_rank() == 0:
        with open(text, "w") as file:
            file.write("\n".join(ROWS))
    dist.barrier()
    written, save = [], SentenceTransformer.save_pretrained
    SentenceTransformer.save_pretrained = lambda self, path, **options: (
        written.append(path) or save(self, path, **options)
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        train.run(
            [
                *("--model_name_or_path", os.environ["TINY_BERT"], "--train_file", text, "--output_dir", folder),
                *("--per_device_train_batch_size", "4", "--group_by_length", "--gather_across_devices"),
                *("--pooling", "mean", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"),
                *("--save_strategy", "no"),
            ]
        )
    SentenceTransformer.save_pretrained = save
    assert _everywhere(written) == [[os.path.join(folder, UNFINISHED)], []], written
    assert [f"saved to {folder}" in text for text in _everywhere(printed.getvalue())] == [True, False]


if __name__ == "__main__":
    if sys.argv[1] == "gradients":
        dist.init_process_group("gloo")
        check_gradients()
    elif sys.argv[1] == "combinations":
        check_combinations()
    elif sys.argv[1] == "sharded":
        check_sharded()
    else:
        check_training()
    dist.destroy_process_group()
