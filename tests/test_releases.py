"""What st_simcse borrows of sentence-transformers is there, and what older releases lack is made up for or refused.

The private names hold in sentence-transformers 5.7, 6.0, 6.1 and 6.2, with which the suite has been run.
"""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest
import sentence_transformers
import torch
import torch.distributed as dist
from datasets import Dataset
from packaging.requirements import Requirement
from packaging.version import Version
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.base.losses import gradcache
from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss
from torch.nn.parallel import DistributedDataParallel

from st_simcse import SimCSETrainer, SimCSETrainingArguments, SupSimCSELoss, UnsupSimCSELoss, embedding
from st_simcse.demo import tiny_model

ROOT = Path(__file__).parent.parent
MERGED_FORWARD = "sentence_transformers.base.losses.merged_forward"
SINCE_6_2 = Version(sentence_transformers.__version__) >= Version("6.2")


def _embedding_without(monkeypatch, *modules):
    """st_simcse.embedding as it is with a sentence-transformers that lacks some modules."""
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "st_simcse.embedding")
    monkeypatch.setattr("st_simcse.embedding", embedding)  # restores what the import below sets
    return importlib.import_module("st_simcse.embedding")


def test_the_private_names_have_the_signatures_that_are_used():
    inspect.signature(embedding.chunked_outputs).bind("model", {}, 48, task=None)
    inspect.signature(embedding.merge_feature_batches).bind([])
    inspect.signature(embedding.has_static_embedding_input).bind("model")
    inspect.signature(gradcache._create_minibatch).bind({}, 0, 3)
    inspect.signature(gradcache._minibatch_ranges).bind({}, 3)
    mixin = embedding.CachedLossMixin
    inspect.signature(mixin.forward_cached).bind("self", [], None)
    inspect.signature(mixin.embed_minibatch).bind(
        "self", sentence_feature={}, begin=0, end=3, with_grad=True, copy_random_state=True, random_state=None
    )
    inspect.signature(mixin.embed_minibatch_iter).bind(
        "self", sentence_feature={}, with_grad=True, copy_random_state=True, random_states=None, ranges=[]
    )


def test_what_older_releases_lack_is_noticed():
    assert embedding.CLEARS_LOSS_GRADIENTS == embedding.SYNCHRONIZES_ONCE == SINCE_6_2


def test_a_release_that_has_moved_the_names_is_told(monkeypatch):
    with pytest.raises(ImportError, match=r"release \d+\.\d+.*install sentence-transformers 5\.7 to 6\.2, or a newer"):
        _embedding_without(monkeypatch, "sentence_transformers.base.losses.gradcache")


def test_merging_before_6_0(model, sentences, monkeypatch):
    own = _embedding_without(monkeypatch, MERGED_FORWARD)
    assert own.chunked_outputs.__module__ == own.merge_feature_batches.__module__ == "st_simcse.embedding"
    model.eval()
    columns = [model.preprocess(sentences), model.preprocess(["No."] * len(sentences))]
    assert columns[0]["input_ids"].shape != columns[1]["input_ids"].shape
    expected = torch.cat([model(dict(column))["sentence_embedding"] for column in columns])
    for size, passes in ((None, 1), (100, 1), (5, -(-len(expected) // 5))):
        outputs = own.chunked_outputs(model, own.merge_feature_batches(columns), size, task=None)
        assert len(outputs) == passes
        assert torch.allclose(torch.cat([output["sentence_embedding"] for output in outputs]), expected, atol=1e-6)
    for unlike in ({"input_ids": columns[1]["input_ids"]}, columns[1] | {"prompt_length": 3}):
        assert own.merge_feature_batches([columns[0], unlike]) is None
    lengths = [column | {"prompt_length": length} for column, length in zip(columns, (2, 3), strict=True)]
    assert own.merge_feature_batches(lengths) is None
    assert own.merge_feature_batches([lengths[0], lengths[0]])["prompt_length"] == 2
    assert own.merge_feature_batches([{"input_ids": torch.arange(3), "offsets": torch.arange(1)}]) is None


def test_adaptive_layers_before_6_0(model, sentences, monkeypatch):
    """A release that does not ask for unmerged columns gives the loss of one that does."""
    loss = AdaptiveLayerLoss(model.eval(), SupSimCSELoss(model), n_layers_per_step=-1)

    def value():
        return loss([model.preprocess(sentences), model.preprocess(sentences[::-1])], None)

    expected = value()
    own = _embedding_without(monkeypatch, MERGED_FORWARD)
    for name in ("merge_feature_batches", "chunked_outputs"):
        monkeypatch.setattr(f"st_simcse.losses.base.{name}", getattr(own, name))
    assert value().item() == pytest.approx(expected.item(), abs=1e-6)


def _trained(sentences, folder, kind, clears):
    model = tiny_model(sentences, width=32).to("cpu")
    torch.manual_seed(0)
    loss = UnsupSimCSELoss(model, projection_head=True)
    arguments = SimCSETrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        max_steps=3,
        learning_rate=1e-2,
        max_grad_norm=0,  # ST's trainer leaves the head out
        report_to="none",
        bf16=False,
    )
    trainer = kind(model, arguments, Dataset.from_dict({"sentence": sentences}), loss=loss)
    if not clears and SINCE_6_2:
        assert trainer.pop_callback(embedding.trainer._OptimizerZeroGradCallback)
    trainer.train()
    return loss.state_dict()


def test_stale_gradients_of_a_head_are_cleared_or_refused(sentences, tmp_path, monkeypatch):
    """ST's trainer before 6.2 is that of 6.2 without its callback."""
    cleared = _trained(sentences, tmp_path, SimCSETrainer, clears=False)
    if SINCE_6_2:
        expected = _trained(sentences, tmp_path, SentenceTransformerTrainer, clears=True)
        assert all(torch.equal(cleared[name], weight) for name, weight in expected.items())
    monkeypatch.setattr(embedding, "CLEARS_LOSS_GRADIENTS", False)
    with pytest.raises(ValueError, match="train with SimCSETrainer, which clears them"):
        _trained(sentences, tmp_path, SentenceTransformerTrainer, clears=False)


def test_a_loop_of_ones_own_is_not_refused(model, sentences, monkeypatch):
    monkeypatch.setattr(embedding, "CLEARS_LOSS_GRADIENTS", False)
    loss = UnsupSimCSELoss(model, projection_head=True)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    for step in range(4):
        loss([model.preprocess(sentences)]).backward()
        if step % 2:  # gradients accumulate over two batches
            optimizer.step()
            optimizer.zero_grad()


def test_cached_gradients_are_exchanged_once_before_6_2(model, sentences, monkeypatch):
    monkeypatch.delattr(gradcache, "_ddp_replay_context", raising=False)
    own = _embedding_without(monkeypatch)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        loss = own.GradientCache()
        loss.model, loss.mini_batch_size = DistributedDataParallel(model), 3
        features = model.preprocess(sentences)
        ranges = gradcache._minibatch_ranges(features, 3)
        options = {"sentence_feature": features, "copy_random_state": False, "ranges": ranges}
        for outer in (True, False):
            loss.model.require_backward_grad_sync = outer
            minibatches = loss.embed_minibatch_iter(with_grad=True, **options)
            seen = [loss.model.require_backward_grad_sync for _ in minibatches]
            assert seen == [False] * (len(ranges) - 1) + [outer]
            assert loss.model.require_backward_grad_sync == outer
        assert len(list(loss.embed_minibatch_iter(with_grad=False, **options))) == len(ranges) > 1
    finally:
        dist.destroy_process_group()


def test_the_lowest_releases_are_those_that_ci_installs():
    dependencies = (ROOT / "pyproject.toml").read_text().split("\ndependencies = [")[1].split("\n]")[0]
    required = [Requirement(text) for text in re.findall('"(.+)"', dependencies)]
    assert len(required) > 5
    assert all(specifier.operator in (">=", "!=") for each in required for specifier in each.specifier)
    pinned = dict(re.findall(r"([\w-]+)==([\d.]+)", (ROOT / ".ci" / "lowest").read_text()))
    for each in required:
        (lowest,) = [specifier.version for specifier in each.specifier if specifier.operator == ">="]
        # torch is the CPU build of the constraints.
        assert each.name == "torch" or Version(pinned[each.name]) == Version(lowest), each
    (lowest,) = [each.specifier for each in required if each.name == "sentence-transformers"]
    for readme in ("README.md", "README.zh.md"):
        assert f"sentence-transformers {str(lowest).removeprefix('>=')} " in (ROOT / readme).read_text()
