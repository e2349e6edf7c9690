import logging
from types import SimpleNamespace

import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW, StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from st_simcse import Searcher, SimCSETrainer, SimCSETrainingArguments
from st_simcse.cli import encode, evaluate, index, train
from st_simcse.data import lengths

# Tokens of a text: its words and the two that the tokenizer adds.
OTHERS = ["dogs run", "cat sleeps", "woman reads", "dogs"]
WORDS = ["dogs run", "dogs run park", "dogs run park woman", "dogs run park woman book"]


def _lengths(model, texts):
    """By the tokenizer itself, which knows no limit here."""
    return [len(model.tokenizer(text, truncation=False)["input_ids"]) for text in texts]


def _said(caplog):
    return [message for message in caplog.messages if "texts are cut" in message]


@pytest.mark.parametrize("limit", [3, 4, 5, 6, 7])
@pytest.mark.parametrize("prompt", [None, "woman "])
def test_the_number_is_that_of_the_tokenizer(model, limit, prompt):
    expected = sum(length > limit for length in _lengths(model, [(prompt or "") + text for text in WORDS]))
    options = {"prompt": prompt} if prompt else {}
    assert lengths.count_longer(model, WORDS, limit, **options) == expected
    assert lengths.count_longer(model, WORDS * 200, limit, **options) == 200 * expected


def test_what_reads_no_rows_of_tokens_cuts_nothing(static_model, caplog):
    assert lengths.count_longer(static_model, WORDS, 2) == 0
    lengths.warn_of_cut_texts(static_model, WORDS)
    assert not _said(caplog)


EMOJI = "\N{GRINNING FACE}"


@pytest.mark.parametrize("static", [False, True])
def test_texts_of_which_a_real_model_knows_nothing(pretrained, static):
    """It embeds them alike, whatever they say."""
    model = SentenceTransformer(pretrained, device="cpu")
    texts = ["dogs", EMOJI, "x" * 2_500, "x" * 90, f"{EMOJI} dogs", "", " \n", "\u200b"]
    first, second = model.encode(texts[1:3])
    assert float(first @ second) == pytest.approx(1, abs=1e-5)
    if static:
        model = SentenceTransformer(modules=[StaticEmbedding(model.tokenizer, embedding_dim=8)], device="cpu")
    assert lengths.rows_unknown(model, texts) == [1, 2, 5, 6, 7]


def test_a_tokenizer_of_bytes_knows_every_text(model):
    symbols = {symbol: number for number, symbol in enumerate(["[UNK]", *pre_tokenizers.ByteLevel.alphabet()])}
    model.tokenizer.backend_tokenizer.model = models.BPE(symbols, [], unk_token="[UNK]")
    model.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert lengths.rows_unknown(model, [EMOJI, "x" * 2_500, "", "dogs"]) == [2]


@pytest.mark.parametrize("static", [False, True])
def test_the_space_that_sentencepiece_puts_before_a_word_is_not_known(static):
    pieces = [("<unk>", 0.0), ("\u2581", -1.0), ("\u2581dogs", -1.0), ("run", -1.0)]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.normalizer = normalizers.NFKC()
    if static:
        model = SentenceTransformer(modules=[StaticEmbedding(unigram, embedding_dim=8)], device="cpu")
    else:
        model = SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>"))
    assert lengths.rows_unknown(model, [EMOJI, f"dogs {EMOJI}", "xyz", "xrun", ""]) == [0, 2, 4]


def test_a_bag_of_words_knows_its_words():
    model = SentenceTransformer(modules=[BoW(["dogs", "run"])], device="cpu")
    assert lengths.rows_unknown(model, ["dogs bark", "cats", EMOJI, ""]) == [1, 2, 3]


def _trainer(model, folder, data, **options):
    arguments = SimCSETrainingArguments(str(folder), report_to="none", bf16=False, max_steps=1, **options)
    return SimCSETrainer(model, arguments, data)


def test_training_says_how_many_texts_it_cuts(model, tmp_path, caplog):
    pairs = Dataset.from_dict({"anchor": WORDS, "positive": WORDS[:3] + WORDS[:1]})
    for options, limit in (
        ({"max_length": 5}, 5),
        ({"max_length": 4}, 4),
        ({"max_length": 4, "tokenize_once": True}, 4),
        ({"max_length": 5, "prompts": {"anchor": "woman "}}, 5),
        ({"max_length": None}, 64),
    ):
        caplog.clear()
        prompt = "woman " if "prompts" in options else ""
        texts = [*(prompt + text for text in pairs["anchor"]), *pairs["positive"]]
        cut = sum(length > limit for length in _lengths(model, texts))
        _trainer(model, tmp_path, pairs, **options)
        said = f"{cut} of 8 texts are cut: they are longer than the {limit} tokens that training reads (max_length, "
        assert _said(caplog) == [f"{said}--max_seq_length)"] * bool(cut)


def test_training_counts_before_views_and_not_for_crops(model, tmp_path, caplog):
    data = Dataset.from_dict({"sentence": WORDS})
    for views, cut in (("word_repetition", 3), ("token_cutoff", 3), ("crops", 0)):
        caplog.clear()
        _trainer(model, tmp_path, data, max_length=4, views=views)
        assert [said.split()[0] for said in _said(caplog)] == [str(cut)] * bool(cut)
    _trainer(model, tmp_path, data.to_iterable_dataset())


def test_labels_are_no_texts(model, tmp_path, caplog):
    data = Dataset.from_dict({"sentence": WORDS, "label": [[0.5] * 90] * 4})
    trainer = _trainer(model, tmp_path, data.remove_columns("label"), max_length=4)
    caplog.clear()
    lengths.warn_of_cut_training_texts(model, trainer.data_collator, {None: data})
    assert _said(caplog)[0].startswith("3 of 4 texts are cut")


def test_a_sample_of_large_data_is_said_to_be_one(model, caplog, monkeypatch):
    monkeypatch.setattr(lengths, "SAMPLE", 10)
    model.max_seq_length = 4
    lengths.warn_of_cut_texts(model, WORDS * 25)
    # Every tenth of the hundred.
    cut = sum(len((WORDS * 25)[row].split()) > 2 for row in range(0, 100, 10))
    assert _said(caplog) == [
        f"About {cut / 10:.1%} of 100 texts are cut, {cut} of a sample of 10: they are longer than the 4 tokens that "
        "the model reads (max_seq_length)"
    ]


def test_an_index_says_it_of_the_documents(model, caplog, tmp_path):
    model.max_seq_length = 5
    model.prompts["document"] = "woman "
    searcher = Searcher(model)
    searcher.build_index(WORDS, tmp_path / "index")
    assert _said(caplog) == [
        "3 of 4 texts are cut: they are longer than the 5 tokens that the model reads (max_seq_length)"
    ]
    caplog.clear()
    searcher.add_to_index(["dogs run park woman", "dogs"])
    assert _said(caplog)[0].startswith("1 of 2 texts are cut")
    caplog.clear()
    searcher.build_index(["dogs"])
    assert not _said(caplog)


def test_the_commands_say_it_once(tiny_bert, tmp_path, caplog):
    model = SentenceTransformer(tiny_bert)
    model.max_seq_length = 4
    model.save_pretrained(str(tmp_path / "model"))
    (tmp_path / "a.txt").write_text("\n".join(WORDS))
    rows = [f"{a}\t{b}\t{score}" for score, (a, b) in enumerate(zip(WORDS, OTHERS, strict=True))]
    for name in ("STS12", "STSB-test"):
        (tmp_path / f"{name}.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    said = " texts are cut: they are longer than the 4 tokens that the model reads (max_seq_length)"
    corpus = ["--model", str(tmp_path / "model"), "--corpus", str(tmp_path / "a.txt")]
    for command, options, cut in (
        (encode, [*corpus, "--output_file", str(tmp_path / "a.npy")], "3 of 4"),
        (index, [*corpus, "--output_dir", str(tmp_path / "index")], "3 of 4"),
        (
            evaluate,
            [*corpus[:2], "--sts_dir", str(tmp_path), "--tasks", "STS12", "STS-B", "--allow_partial"],
            "3 of 7",  # of different texts
        ),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            command.run(options)
        assert _said(caplog) == [cut + said]
    caplog.clear()
    options = ["--model_name_or_path", tiny_bert, "--train_file", str(tmp_path / "a.txt"), "--max_seq_length", "5"]
    train.run([*options, "--output_dir", str(tmp_path / "out"), "--report_to", "none", "--max_steps", "2"])
    assert _said(caplog) == [
        "2 of 4 texts are cut: they are longer than the 5 tokens that training reads (max_length, --max_seq_length)"
    ]
