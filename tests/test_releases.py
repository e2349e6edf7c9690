"""st_simcse runs on the releases that pyproject.toml allows, and says so on one that has moved what it borrows."""

import importlib
import inspect
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from datasets import Dataset
from packaging.requirements import Requirement
from packaging.version import Version
from sentence_transformers import SentenceTransformerTrainer
from transformers.integrations import peft as transformers_peft

from st_simcse import SimCSETrainer, SimCSETrainingArguments, UnsupSimCSELoss, build_model
from st_simcse.losses import st_internals as embedding
from st_simcse.models.checkpoints import load_model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest needs there

ROOT = Path(__file__).parent.parent


def _required(extra=None):
    """The releases that pyproject.toml asks for: for the package, or for an extra alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


def _lowest(requirement):
    return next((each.version for each in requirement.specifier if each.operator == ">="), None)


def test_the_private_names_have_the_signatures_that_are_used():
    inspect.signature(embedding.chunked_outputs).bind("model", {}, 48, task=None)
    inspect.signature(embedding.merge_feature_batches).bind([])
    inspect.signature(embedding.has_static_embedding_input).bind("model")
    mixin = embedding.CachedLossMixin
    inspect.signature(mixin.forward_cached).bind("self", [], None)
    inspect.signature(mixin.embed_minibatch).bind(
        "self", sentence_feature={}, begin=0, end=3, with_grad=True, copy_random_state=True, random_state=None
    )
    inspect.signature(mixin.embed_minibatch_iter).bind(
        "self", sentence_feature={}, with_grad=True, copy_random_state=True, random_states=None, ranges=[]
    )


@pytest.mark.parametrize("module", ["base.losses", "base.losses.merged_forward"])
def test_a_release_that_has_moved_the_names_is_told(monkeypatch, module):
    (lowest,) = [_lowest(each) for each in _required() if each.name == "sentence-transformers"]
    monkeypatch.setitem(sys.modules, f"sentence_transformers.{module}", None)
    monkeypatch.delitem(sys.modules, "st_simcse.losses.st_internals")
    monkeypatch.setattr("st_simcse.losses.st_internals", embedding)  # restores what the import below sets
    message = f"release {version('sentence-transformers')} .*. Install sentence-transformers {lowest}, or a newer"
    with pytest.raises(ImportError, match=message):
        importlib.import_module("st_simcse.losses.st_internals")


@pytest.mark.parametrize("kind", [SimCSETrainer, SentenceTransformerTrainer])
def test_no_step_adds_to_the_gradients_of_the_one_before(model, sentences, tmp_path, kind):
    """Of a projection head, which the model does not have, too: trainers before 6.2 left them."""
    loss = UnsupSimCSELoss(model, projection_head=True)
    left = []
    loss.register_forward_pre_hook(lambda *_: left.append([p.shape for p in loss.parameters() if p.grad is not None]))
    arguments = SimCSETrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, max_steps=3, report_to="none", bf16=False
    )
    kind(model, arguments, Dataset.from_dict({"sentence": sentences}), loss=loss).train()
    assert left == [[], [], []]


@pytest.mark.parametrize("load", [build_model, load_model])
def test_code_of_a_folder_is_not_run(tiny_bert, tmp_path, load):
    """sentence-transformers before 6.0 ran the classes that modules.json names."""
    folder = tmp_path / "model"
    build_model(tiny_bert, "mean").save_pretrained(str(folder))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "own.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(str(folder))
    assert not (tmp_path / "ran").exists()


def test_any_two_releases_that_the_lora_extra_allows_go_together():
    """The lowest peft with the transformers installed here, which is the newest where nothing older is asked for."""
    extra = {each.name: each for each in _required("lora")}
    for name in ("peft", "transformers"):
        assert extra[name].specifier.contains(version(name)), f'pip install "st_simcse[lora]": {extra[name]}'
    assert Version(_lowest(extra["peft"])) >= Version(transformers_peft.MIN_PEFT_VERSION)


def test_ci_installs_the_lowest_releases(tmp_path):
    """.ci/lowest, with commands that write down what they are asked for."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "lowest", tmp_path / ".ci")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    bin_folder = tmp_path / ".venv-lowest" / "bin"
    bin_folder.mkdir(parents=True)
    for name in ("python", "pip", "pytest"):
        (bin_folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> commands.txt\n')
        (bin_folder / name).chmod(0o755)
    subprocess.run([tmp_path / ".ci" / "lowest", "-x"], check=True, capture_output=True)
    pip, pytest_ = (tmp_path / "commands.txt").read_text().splitlines()
    assert "--requirement .venv-lowest/lowest.txt" in pip
    assert pytest_.endswith(" -x")

    lines = (tmp_path / ".venv-lowest" / "lowest.txt").read_text().splitlines()
    asked = {Requirement(line).name: str(Requirement(line).specifier) for line in lines}
    declared = [each for each in [*_required(), *_required("lora")] if _lowest(each)]
    # torch is the CPU build of the constraints.
    assert asked == {each.name: f"=={_lowest(each)}" for each in declared if each.name != "torch"}
    assert len(asked) > 8


def test_nothing_is_capped_and_the_pages_name_the_lowest_releases():
    required = _required()
    assert all(specifier.operator in (">=", "!=") for each in required for specifier in each.specifier)
    lowest = {each.name: _lowest(each) for each in required}
    text = (ROOT / "docs" / "releases.md").read_text()
    for name in ("sentence-transformers", "transformers", "torch"):
        assert f"{name} from {lowest[name]}" in text
    for readme in ("README.md", "README.zh.md"):
        assert f"sentence-transformers {lowest['sentence-transformers']} " in (ROOT / readme).read_text()
