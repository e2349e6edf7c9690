"""What test_distributed.py runs under torchrun: each check compares several processes with one over the whole batch."""

import os
import sys
import tempfile

import pytest
import torch
import torch.distributed as dist
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer
from torch.nn.parallel import DistributedDataParallel

from conftest import SENTENCES
from st_simcse import (
    DropoutFreeNegatives,
    MomentumQueue,
    OwnNegativeWeight,
    SimCSETrainer,
    SimCSETrainingArguments,
    SupSimCSELoss,
    UnsupSimCSELoss,
    build_model,
)
from st_simcse.objective import cross_entropy
from tests.test_losses import _without_dropout

ROWS = [f"{first} {second}" for first in SENTENCES for second in SENTENCES][::3]
COLUMNS = [ROWS, ROWS[1:] + ROWS[:1], ROWS[2:] + ROWS[:2]]


def _model():
    return _without_dropout(build_model(os.environ["TINY_BERT"], pooling="mean", device="cpu")).double().train()


def _loss(model, options, gather):
    torch.manual_seed(0)
    options = dict(options)
    supervised = options.pop("supervised")
    loss = (SupSimCSELoss if supervised else UnsupSimCSELoss)(model, gather_across_devices=gather, **options)
    loss.is_synchronized = True
    return loss


def _gradients(loss, columns):
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
        for elements in (0, cross_entropy.DENSE_ELEMENTS):  # tiled, then dense
            cross_entropy.DENSE_ELEMENTS, kept = elements, cross_entropy.DENSE_ELEMENTS
            columns = COLUMNS if supervised else COLUMNS[:2]
            options["supervised"] = supervised
            alone = _loss(_model(), options, gather=False)
            alone.model_for_tokens = alone.model
            alone.is_synchronized = True
            value, expected = _gradients(alone, columns)

            model = _model()
            shared = _loss(model, options, gather=True)
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
            cross_entropy.DENSE_ELEMENTS = kept
    print("gradients equal")


def _trained(folder, batch, trainer=SimCSETrainer, seen=None, **options):
    model = _without_dropout(build_model(os.environ["TINY_BERT"], pooling="mean", device="cpu"))
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
        max_grad_norm=0,
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
        with pytest.raises(ValueError, match="train with SimCSETrainer"):
            _trained(folder, 4, trainer=SentenceTransformerTrainer)
    if rank == 0:
        torch.save(
            {name.replace("module.", ""): p.detach() for name, p in loss.named_parameters()}, os.environ["WEIGHTS"]
        )
    print("training equal")


def loss_texts(training, ids):
    tokenizer = training.model.tokenizer
    return [text.replace(" .", ".") for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


if __name__ == "__main__":
    if sys.argv[1] == "gradients":
        dist.init_process_group("gloo")
        check_gradients()
    else:
        check_training()
    dist.destroy_process_group()
