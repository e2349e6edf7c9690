import logging
import pickle

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch.utils.data import BatchSampler, DataLoader

from st_simcse import (
    LengthGroupedBatchSampler,
    SimCSETrainer,
    SimCSETrainingArguments,
    SupSimCSELoss,
    UnsupSimCSELoss,
)
from st_simcse.data.batching import token_collator, tokenize
from st_simcse.demo import tiny_model


def _sampler(dataset, batch_size=8, **options):
    options = {"drop_last": False, "generator": torch.Generator(), "seed": 3} | options
    return LengthGroupedBatchSampler(dataset, batch_size=batch_size, **options)


def test_batches_hold_every_row_once_and_are_of_like_length(files):
    sentences = (files / "wiki/wiki_sentences.txt").read_text().splitlines()[:1001]
    batches = list(_sampler(Dataset.from_dict({"sentence": sentences})))
    assert sorted(row for batch in batches for row in batch) == list(range(1001))
    assert [len(batch) for batch in batches].count(8) == 125

    def padding(batches):
        lengths = [[len(sentences[row]) for row in batch] for batch in batches]
        return sum(max(batch) * len(batch) - sum(batch) for batch in lengths)

    in_order = [list(range(begin, min(begin + 8, 1001))) for begin in range(0, 1001, 8)]
    assert padding(batches) < 0.2 * padding(in_order)


def test_lists_of_negatives_are_as_long_as_their_texts():
    rows = [(["a" * 9], 12), (["a", "b", "c"], 6), ([], 3), (None, 3), (["a" * 4, "b" * 4], 11)]
    data = Dataset.from_list([{"anchor": "ab", "positive": "c", "negatives": cell} for cell, _ in rows])
    assert LengthGroupedBatchSampler(data, 2, False).lengths == [length for _, length in rows]


def test_batches_are_shuffled_anew_and_reproducibly_each_epoch():
    dataset = Dataset.from_dict({"a": ["x" * (i % 37 + 1) for i in range(200)], "b": ["y"] * 200, "label": [0] * 200})
    first, again, other = (_sampler(dataset, valid_label_columns=["label"]) for _ in range(3))
    other.set_epoch(1)
    batches = list(first)
    assert batches == list(again)
    assert batches != list(other)
    longest = [max(len(dataset[row]["a"]) for row in batch) for batch in batches]
    assert longest != sorted(longest, reverse=True)
    assert len(list(_sampler(dataset, batch_size=64, drop_last=True, valid_label_columns=["label"]))) == 3


def test_token_collator_pads_as_the_model_does(model, sentences):
    dataset = tokenize(Dataset.from_dict({"anchor": sentences, "positive": sentences[::-1]}), model)
    batch = token_collator(model)([dataset[row] for row in range(len(sentences))])
    for column, texts in (("anchor", sentences), ("positive", sentences[::-1])):
        expected = model.preprocess(texts)
        for key, value in expected.items():
            got = batch[f"{column}_{key}"]
            assert torch.equal(got, value) if isinstance(value, torch.Tensor) else got == value, key


def test_tokenize_once_refuses_a_static_embedding(static_model):
    with pytest.raises(ValueError, match="no attention mask"):
        tokenize(Dataset.from_dict({"sentence": ["One."]}), static_model)


def _trained(sentences, folder, **options):
    model = tiny_model(sentences, width=32).to("cpu")
    arguments = SimCSETrainingArguments(
        str(folder), per_device_train_batch_size=4, num_train_epochs=2, report_to="none", save_strategy="no", **options
    )
    dataset = Dataset.from_dict({"sentence": sentences})
    trainer = SimCSETrainer(model=model, args=arguments, train_dataset=dataset, loss=UnsupSimCSELoss(model))
    trainer.train()
    return trainer


def test_tokenize_once_trains_to_the_same_weights(sentences, tmp_path):
    plain = _trained(sentences, tmp_path, bf16=False).model.state_dict()
    once = _trained(sentences, tmp_path, bf16=False, tokenize_once=True).model.state_dict()
    start = tiny_model(sentences, width=32).state_dict()
    assert any(not torch.equal(plain[name], start[name].cpu()) for name in plain)
    for name, weight in plain.items():
        assert torch.equal(weight, once[name]), name


def _batches(model, data, folder, **options):
    arguments = SimCSETrainingArguments(str(folder), bf16=False, per_device_train_batch_size=4, **options)
    return list(SimCSETrainer(model, arguments, data, data, SupSimCSELoss(model)).get_train_dataloader())


@pytest.mark.parametrize("kind", ["prompts", "routes", "labels"])
def test_tokenize_once_gives_sts_own_batches(model, sentences, tmp_path, tiny_bert, kind):
    data = Dataset.from_dict({"query": sentences, "text": sentences[::-1]})
    options = {}
    if kind == "prompts":
        model[1].include_prompt = False
        options["prompts"] = {"query": "Two dogs run: ", "text": "A cat "}
    elif kind == "routes":
        routes = [[Transformer(tiny_bert, max_seq_length=length), Pooling(32)] for length in (5, 9)]
        model = SentenceTransformer(modules=[Router.for_query_document(*routes)], device="cpu")
        options["router_mapping"] = {"query": "query", "text": "document"}
    else:
        data = data.add_column("label", list(range(len(sentences))))
    plain = _batches(model, data, tmp_path, **options)
    once = _batches(model, data, tmp_path, tokenize_once=True, **options)
    assert len(plain) == len(once) == 2
    for batch, expected in zip(once, plain, strict=True):
        assert batch.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(batch[key], value) if isinstance(value, torch.Tensor) else batch[key] == value, key
    if kind == "prompts":
        assert plain[0]["query_prompt_length"] > 1


def test_tokenize_once_refuses_routes_that_pad_differently(sentences, tiny_bert):
    routes = [[Transformer(tiny_bert), Pooling(32)] for _ in range(2)]
    routes[1][0].tokenizer.padding_side = "left"
    model = SentenceTransformer(modules=[Router.for_query_document(*routes)], device="cpu")
    with pytest.raises(ValueError, match="pad differently"):
        tokenize(Dataset.from_dict({"query": sentences}), model)


def test_tokenize_once_needs_a_dataset(model, tmp_path):
    arguments = SimCSETrainingArguments(str(tmp_path), tokenize_once=True)
    with pytest.raises(ValueError, match="needs a datasets.Dataset as train_dataset, got dict"):
        SimCSETrainer(model=model, args=arguments, train_dataset={}, loss=UnsupSimCSELoss(model))


def test_tokenize_once_refuses_another_collator(model, sentences, tmp_path):
    arguments = SimCSETrainingArguments(str(tmp_path), tokenize_once=True)
    data = Dataset.from_dict({"sentence": sentences})
    with pytest.raises(ValueError, match="needs a data collator of ST"):
        SimCSETrainer(model, arguments, data, loss=UnsupSimCSELoss(model), data_collator=lambda rows: rows)


def test_group_by_length_reaches_the_trainer(sentences, tmp_path):
    trainer = _trained(sentences, tmp_path, group_by_length=True)
    assert isinstance(
        trainer.get_batch_sampler(trainer.train_dataset, 4, False, generator=torch.Generator()),
        LengthGroupedBatchSampler,
    )


def test_group_by_length_is_refused_with_another_batch_sampler(tmp_path):
    for sampler in ("no_duplicates", BatchSamplers.NO_DUPLICATES, BatchSampler):
        with pytest.raises(ValueError, match="group_by_length and batch_sampler=.* both choose the texts of a batch"):
            SimCSETrainingArguments(str(tmp_path), group_by_length=True, batch_sampler=sampler)
    for sampler in ("batch_sampler", BatchSamplers.BATCH_SAMPLER, LengthGroupedBatchSampler):
        arguments = SimCSETrainingArguments(str(tmp_path), group_by_length=True, batch_sampler=sampler)
        assert arguments.batch_sampler is LengthGroupedBatchSampler


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_is_on_where_it_is_fast_and_can_be_turned_off(monkeypatch, tmp_path, caplog, fast):
    monkeypatch.setattr("st_simcse.training.training_arguments.computes_in_bf16", lambda use_cpu: fast)
    caplog.set_level(logging.INFO)
    assert SimCSETrainingArguments(str(tmp_path)).bf16 is fast
    assert [message.startswith("Training in bf16") for message in caplog.messages] == [True] * fast
    caplog.clear()
    assert SimCSETrainingArguments(str(tmp_path), bf16=False).bf16 is False
    assert not caplog.messages
    assert SimCSETrainingArguments(str(tmp_path), bf16=True).bf16 is True
    assert [message.startswith("This CPU emulates bf16") for message in caplog.messages] == [True] * (not fast)


@pytest.mark.slow
def test_torch_compile_trains(sentences, tmp_path):
    trainer = _trained(sentences, tmp_path, bf16=False, torch_compile=True)
    assert trainer.state.global_step == 4
    assert trainer.model.encode(sentences).shape == (8, 32)


@pytest.mark.parametrize("views", [None, "token_cutoff"])
@pytest.mark.parametrize("once", [False, True])
def test_collators_can_be_pickled(model, sentences, tmp_path, views, once):
    """As workers that are spawned need it, on Windows and macOS: they make the same batches."""
    arguments = SimCSETrainingArguments(str(tmp_path), bf16=False, tokenize_once=once, views=views)
    trainer = SimCSETrainer(model, arguments, Dataset.from_dict({"sentence": sentences}), loss=UnsupSimCSELoss(model))
    rows = [trainer.train_dataset[row] for row in range(4)]
    expected, got = trainer.data_collator(rows), pickle.loads(pickle.dumps(trainer.data_collator))(rows)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(got[key], value) if isinstance(value, torch.Tensor) else got[key] == value, key


@pytest.mark.slow
def test_spawned_workers_pad_what_was_tokenized_once(model, sentences):
    dataset = tokenize(Dataset.from_dict({"sentence": sentences}), model)
    loader = DataLoader(
        dataset, batch_size=8, collate_fn=token_collator(model), num_workers=1, multiprocessing_context="spawn"
    )
    (batch,) = loader
    assert torch.equal(batch["sentence_input_ids"], model.preprocess(sentences)["input_ids"])
