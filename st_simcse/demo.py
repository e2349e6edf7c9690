"""The command `st-simcse demo`: both objectives on a tiny model and a generated corpus, without network or files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.util import semantic_search
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

from st_simcse.corpus import Corpus, generate_corpus
from st_simcse.losses import SupSimCSELoss, UnsupSimCSELoss
from st_simcse.models.modeling import PoolingMode, build_model
from st_simcse.training.trainer import SimCSETrainer

__all__ = ["run_demo", "tiny_model"]


def tiny_model(
    sentences: Iterable[str], pooling: PoolingMode = "mean", width: int = 64, layers: int = 2, seed: int = 0
) -> SentenceTransformer:
    """Returns a BERT model with random weights that trains in seconds on a CPU. Its vocabulary is from ``sentences``.

    Args:
        sentences: The texts with the words of the vocabulary. They are lower-cased and split at white space,
            punctuation and every Chinese character.
        pooling: The pooling mode, as in :func:`~st_simcse.build_model`.
        width: The hidden size d.
        layers: The number of transformer layers.
        seed: The random seed of the weights.

    Example:
        >>> tiny_model(["Two dogs run."]).encode("Two dogs").shape
        (64,)
    """
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_transformer(folder, sentences, width, layers)
        return build_model(folder, pooling)


def save_tiny_transformer(folder: str | Path, sentences: Iterable[str], width: int, layers: int) -> None:
    """Saves the transformer of :func:`tiny_model` with its tokenizer in the format of transformers."""
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = {
        word for sentence in sentences for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(sentence))
    }
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*special, *sorted(words)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    roles = ["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, **dict(zip(roles, special, strict=True))
    ).save_pretrained(folder)
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 16,
            intermediate_size=2 * width,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder)


def run_demo(seed: int = 0) -> dict[str, float]:
    """Trains without and then with supervision. Prints Spearman's correlation on held-out pairs, and neighbours.

    Returns:
        Spearman's correlation by stage: ``before``, ``unsupervised``, ``supervised``.
    """
    corpus = generate_corpus(seed=seed)
    model = tiny_model(corpus.sentences + [text for triplet in corpus.triplets for text in triplet], seed=seed)
    first, second, similarities = map(list, zip(*corpus.scored_pairs, strict=True))
    evaluator = EmbeddingSimilarityEvaluator(first, second, similarities, main_similarity="cosine", batch_size=128)
    scores = {"before": evaluator(model)["spearman_cosine"]}

    print(f"\nUnsupervised: {len(corpus.sentences)} sentences, each its own positive under a different dropout mask")
    _train(model, UnsupSimCSELoss(model), Dataset.from_dict({"sentence": corpus.sentences}), seed, epochs=2)
    scores["unsupervised"] = evaluator(model)["spearman_cosine"]

    print(f"\nSupervised: {len(corpus.triplets)} triplets of anchor, positive and hard negative")
    columns = dict(zip(("anchor", "positive", "negative"), zip(*corpus.triplets, strict=True), strict=True))
    _train(model, SupSimCSELoss(model), Dataset.from_dict(columns), seed, epochs=4)
    scores["supervised"] = evaluator(model)["spearman_cosine"]

    print(f"\nSpearman's correlation x 100 on {len(corpus.scored_pairs)} held-out pairs")
    for stage, score in scores.items():
        print(f"  {stage:<14}{100 * score:6.2f}")
    _print_neighbours(model, corpus)
    print(
        "\nNext, train on your own sentences, one per line:\n  st-simcse train --model_name_or_path "
        "sentence-transformers/all-MiniLM-L6-v2 --train_file sentences.txt --output_dir output"
    )
    return scores


def _train(
    model: SentenceTransformer, loss: UnsupSimCSELoss | SupSimCSELoss, dataset: Dataset, seed: int, epochs: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=64,
            learning_rate=1e-3,
            lr_scheduler_type="linear",
            seed=seed,
            save_strategy="no",
            logging_steps=20,
            report_to="none",
            dataloader_pin_memory=torch.accelerator.is_available(),
        )
        SimCSETrainer(model=model, args=arguments, train_dataset=dataset, loss=loss).train()


def _print_neighbours(model: SentenceTransformer, corpus: Corpus, count: int = 3, neighbours: int = 3) -> None:
    texts = list(dict.fromkeys(corpus.sentences))
    questions = [sentence for sentence, _, _ in corpus.scored_pairs[:count]]
    queries, candidates = (model.encode(some, batch_size=128, convert_to_tensor=True) for some in (questions, texts))
    hits = semantic_search(queries, candidates, top_k=neighbours)
    print("\nNearest neighbours of held-out sentences after both trainings")
    for question, found in zip(questions, hits, strict=True):
        print(f"  {question}")
        for hit in found:
            print(f"    {hit['score']:.2f}  {texts[int(hit['corpus_id'])]}")
