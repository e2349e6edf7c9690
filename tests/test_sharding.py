from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin

from st_simcse import MaskedLanguageModel, MomentumQueue, SimCSETrainingArguments, UnsupSimCSELoss
from st_simcse.training.sharding import UnshardedWeights, check_shardable


def _fsdp(**options):
    options = {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT"} | options
    return {"fsdp_plugin": FullyShardedDataParallelPlugin(**options)}


def _deepspeed(stage):
    return {"deepspeed_plugin": SimpleNamespace(zero_stage=stage)}


@pytest.mark.parametrize(
    ("plugin", "arguments", "options", "message"),
    [
        (_fsdp(fsdp_version=1), {}, {}, "SimCSETrainer does not support FSDP1"),
        (_fsdp(state_dict_type="SHARDED_STATE_DICT"), {}, {}, "the saved model could not be loaded"),
        (_fsdp(), {"torch_compile": True}, {}, "torch_compile does not work with FSDP"),
        (_fsdp(), {}, {"options": [MomentumQueue(4)]}, "MomentumQueue cannot be combined with FSDP"),
        (_fsdp(), {}, {"options": [MaskedLanguageModel(0.1)]}, "MaskedLanguageModel cannot be combined with FSDP"),
        (_fsdp(), {}, {"mini_batch_size": 4}, "Leave out mini_batch_size"),
        (_fsdp(), {}, {"projection_head": True}, None),
        (_deepspeed(3), {}, {}, "ZeRO stage 3 has not been tested"),
        (_deepspeed(2), {}, {"projection_head": True}, "DeepSpeed only trains the weights of the model"),
        (_deepspeed(2), {}, {"options": [MomentumQueue(4)]}, "MomentumQueue cannot be combined with DeepSpeed"),
        (_deepspeed(2), {}, {"mini_batch_size": 4}, "Leave out mini_batch_size"),
        (_deepspeed(1), {}, {}, None),
    ],
)
def test_what_does_not_train_as_one_process_does_is_refused(model, tmp_path, plugin, arguments, options, message):
    arguments = SimCSETrainingArguments(str(tmp_path), bf16=False, **arguments)
    losses = [torch.nn.ModuleList([UnsupSimCSELoss(model, **options)])]  # as in a wrapper
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        check_shardable(arguments, SimpleNamespace(**plugin), losses, model)


def test_an_optimizer_is_as_before_after_its_whole_weights_were_taken_out():
    model, head = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    groups = [{"params": [model.weight, head.weight], "lr": 0.1}, {"params": [model.bias, head.bias], "lr": 0.2}]
    optimizer, whole = torch.optim.AdamW(groups), UnshardedWeights(head.parameters())
    whole.take_out(optimizer)
    assert [group["params"] for group in optimizer.param_groups] == [[model.weight], [model.bias]]
    whole.put_back(optimizer)
    assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [(0.1, 1), (0.2, 1)] * 2
