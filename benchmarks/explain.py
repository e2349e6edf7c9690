"""Draws the pictures of docs/simcse.md: the effects of dropout on a sentence, of training, and of the temperature.

python benchmarks/explain.py --model MODEL --corpus wiki_sentences.txt --dev_file STSB-dev.tsv
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from sentence_transformers import SentenceTransformer
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional as F
from transformers import set_seed

from st_simcse import (
    AlignmentUniformityEvaluator,
    SentenceReader,
    SimCSETrainer,
    SimCSETrainingArguments,
    UnsupSimCSELoss,
    build_model,
    load_sts,
    set_dropout,
)
from st_simcse.plots import grid_behind, legend_outside, make_figure, plot_alignment_uniformity, save_figure

MASKS = 100  # dropout masks for each sentence
DROPOUTS = (0.1, 0.3)
TEMPERATURES = (0.01, 0.05, 0.2, 1.0)
BATCH = 64
PAIRS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--dev_file", required=True)
    parser.add_argument("--pooling", default="cls")
    parser.add_argument(
        "--sentences", type=int, default=1280, help="number of random sentences to train on, in both runs"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("docs"))
    args = parser.parse_args()
    disable_progress_bars()
    logging.disable(logging.WARNING)
    sentences = SentenceReader().get_dataset(args.corpus).shuffle(seed=0)["sentence"][: args.sentences]
    model = build_model(args.model, args.pooling, max_seq_length=32, device="cpu")
    set_seed(0)
    draw_temperature(model, sentences[:BATCH], args.output_dir / "simcse_temperature.png")
    draw_dropout(model, sentences[:300], args.output_dir / "simcse_dropout.png")
    runs = {f"dropout {dropout}": train(args, sentences, dropout) for dropout in (0.1, 0.0)}
    plot_alignment_uniformity(runs, args.output_dir / "simcse_training.png")
    for name, history in runs.items():
        for entry in history:
            if "eval_dev_alignment" in entry:
                numbers = f"{entry['eval_dev_alignment']:.3f}, uniformity {entry['eval_dev_uniformity']:.3f}"
                print(f"{name}, epoch {entry['epoch']:.2f}: alignment {numbers}")


def views(model: SentenceTransformer, texts: list[str]) -> Tensor:
    """Returns embeddings (n, d) of unit length, with a different dropout mask for each text."""
    model.train()
    with torch.no_grad():
        return F.normalize(model(model.preprocess(texts))["sentence_embedding"], dim=-1)


def draw_dropout(model: SentenceTransformer, sentences: list[str], path: Path) -> None:
    """Draws views of six sentences among others without dropout, in the plane of the others' two main components."""
    others = model.encode(sentences, convert_to_tensor=True, normalize_embeddings=True)
    nearest = (others @ others.T - 2 * torch.eye(len(others))).amax(dim=1)
    plane = PCA(2).fit(others)
    print(f"the plane has {sum(plane.explained_variance_ratio_):.1%} of the variance")
    print(f"cosine with the nearest of {len(sentences) - 1} other sentences: {nearest.mean():.2f} on average")
    figure, panels = make_figure(path, len(DROPOUTS), sharex=True, sharey=True)
    for axes, dropout in zip(panels, DROPOUTS, strict=True):
        set_dropout(model, dropout)
        handles = [axes.scatter(*plane.transform(others).T, s=8, color="lightgrey")]
        similarities = []
        for sentence in sentences[:6]:
            of_one = views(model, [sentence] * MASKS)
            handles.append(axes.scatter(*plane.transform(of_one).T, s=6, alpha=0.5))
            similarities.append((of_one @ of_one.T)[~torch.eye(MASKS, dtype=torch.bool)])
        pairs = torch.cat(similarities)
        print(
            f"dropout {dropout}, two views of a sentence: cosine {pairs.mean():.2f} on average, min. {pairs.min():.2f}"
        )
        title = f"dropout {dropout}: two views have the cosine {pairs.mean():.2f} on average"
        axes.set(title=title, xticks=[], yticks=[], xlabel="PC 1", ylabel="PC 2")
    views_of = [f"views of sentence {number}" for number in range(1, len(handles))]
    legend_outside(figure, handles, ["other sentences, no dropout", *views_of])
    save_figure(figure, path)


def draw_temperature(model: SentenceTransformer, sentences: list[str], path: Path) -> None:
    """Draws the weights of a batch's negatives in the gradient by similarity, and the share of the nearest ones."""
    similarities = views(model, sentences) @ views(model, sentences).T
    negatives = similarities[~torch.eye(len(sentences), dtype=torch.bool)].view(len(sentences), -1)
    figure, (left, right) = make_figure(path, 2)
    lines = []
    count = negatives.shape[1]
    for temperature in TEMPERATURES:
        weights = (negatives / temperature).softmax(dim=1)
        left.scatter(negatives[::4], count * weights[::4], s=3, alpha=0.4)
        shares = weights.sort(dim=1, descending=True).values.cumsum(dim=1).mean(dim=0)
        lines += right.plot(range(1, count + 1), shares)
        print(f"τ = {temperature}: nearest negative {shares[0]:.0%}, nearest six {shares[5]:.0%} of the weight")
    left.set(
        xlabel="cosine of anchor and negative", ylabel="weight, 1 on average", yscale="log", ylim=(1e-4, 2 * count)
    )
    right.set(
        xlabel=f"the nearest negatives of an anchor, of {count}", ylabel="their share of the weight", ylim=(0, 1.02)
    )
    for axes in (left, right):
        grid_behind(axes)
    legend_outside(figure, lines, [f"τ = {temperature}" for temperature in TEMPERATURES])
    save_figure(figure, path)


def train(args: argparse.Namespace, sentences: list[str], dropout: float) -> list[dict[str, float]]:
    """Trains briefly and returns the log history, with alignment and uniformity of dev pairs with scores above 4."""
    set_seed(0)
    model = build_model(args.model, args.pooling, max_seq_length=32, dropout=dropout)
    dev = load_sts(args.dev_file)
    rows = zip(dev.sentences1, dev.sentences2, dev.scores, strict=True)
    positives = [row for row in rows if row[2] > 4][:PAIRS]
    evaluator = AlignmentUniformityEvaluator(*zip(*positives, strict=True), name="dev", write_csv=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SimCSETrainingArguments(
            folder,
            per_device_train_batch_size=BATCH,
            learning_rate=3e-5,
            eval_strategy="steps",
            eval_steps=0.25,
            eval_on_start=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SimCSETrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({"sentence": sentences}),
            loss=UnsupSimCSELoss(model, projection_head=True),
            evaluator=evaluator,
        )
        trainer.train()
    return trainer.state.log_history


if __name__ == "__main__":
    main()
