import torch

from st_simcse import build_model
from st_simcse.data.duplicates import text_keys
from st_simcse.objective import KnownPositives
from tests.inputs import flattened


def test_keys_are_equal_for_equal_tokens_only(files, pretrained):
    """Whatever the batch they are padded in and whichever side the padding is on."""
    model = build_model(pretrained, pooling="mean", max_seq_length=128, device="cpu")
    sentences = (files / "wiki/wiki_sentences.txt").read_text().splitlines()[:3000]
    keys = torch.cat([text_keys(model.preprocess(sentences[begin : begin + 100])) for begin in range(0, 3000, 100)])
    rows = [tuple(ids) for ids in model.tokenizer(sentences, truncation=True, max_length=128)["input_ids"]]
    assert len(set(keys.tolist())) == len(set(rows))
    by_row = dict(zip(rows, keys.tolist(), strict=True))
    assert [by_row[row] for row in rows] == keys.tolist()
    model.tokenizer.padding_side = "left"
    assert torch.equal(text_keys(model.preprocess(sentences[:100])), keys[:100])


def test_keys_of_a_static_embedding(static_model, sentences):
    keys = text_keys(static_model.preprocess([*sentences, sentences[2]]))
    assert keys[2] == keys[-1]
    assert len(set(keys.tolist())) == len(sentences)
    assert torch.equal(text_keys(static_model.preprocess(sentences[::-1])), keys[:-1].flip(0))


def test_flattened_inputs_have_the_keys_of_padded_ones(model, sentences):
    """What flash attention takes: all texts as one row, and where each begins."""
    assert torch.equal(text_keys(flattened(model, sentences)), text_keys(model.preprocess(sentences)))


def test_order_counts():
    mask = torch.ones(2, 3, dtype=torch.long)
    first, second = text_keys({"input_ids": torch.tensor([[1, 2, 3], [3, 2, 1]]), "attention_mask": mask}).tolist()
    assert first != second


def test_inputs_that_are_no_rows_of_tokens_have_no_keys():
    assert text_keys({"pixel_values": torch.zeros(2, 3)}) is None


def test_known_positives_are_those_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    queries, candidates, left, right = (torch.randint(9, (size,), generator=generator) for size in (13, 17, 6, 6))
    pairs = set(zip(left.tolist(), right.tolist(), strict=True))
    expected = [[q == c or (q, c) in pairs for c in candidates.tolist()] for q in queries.tolist()]
    known = KnownPositives(queries * 10**15, candidates * 10**15, torch.stack([left, right]) * 10**15)
    assert known.mask().tolist() == expected
    assert known.mask(slice(5, 20)).tolist() == expected[5:]
    assert known.count() == sum(map(sum, expected))
