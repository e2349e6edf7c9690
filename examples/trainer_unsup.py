"""Unsupervised SimCSE with SimCSETrainer, which saves the projection head in its checkpoints."""

import argparse

from sentence_transformers import SentenceTransformerTrainingArguments

from st_simcse import SentenceReader, SimCSETrainer, UnsupSimCSELoss, build_model, load_sts

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="bert-base-uncased", help="folder, or name on the hub")
parser.add_argument("--train_file", required=True, help="text file with one sentence per line")
parser.add_argument("--dev_file", required=True, help="scored pairs: sentence1, sentence2, score")
parser.add_argument("--output", default="output/trainer_unsup")
parser.add_argument("--max_steps", type=int, default=-1, help="stop after this many steps")
args = parser.parse_args()

model = build_model(args.model, pooling="cls")
loss = UnsupSimCSELoss(model, projection_head=True)
dev = load_sts(args.dev_file, name="dev")
arguments = SentenceTransformerTrainingArguments(
    args.output,
    num_train_epochs=1,
    max_steps=args.max_steps,
    per_device_train_batch_size=64,
    learning_rate=3e-5,
    eval_strategy="steps",
    eval_steps=0.5,
    save_strategy="steps",
    save_steps=0.5,
    load_best_model_at_end=True,
    metric_for_best_model="eval_dev_spearman_cosine",
    batch_sampler="no_duplicates",
    report_to="none",
)
trainer = SimCSETrainer(
    model=model,
    args=arguments,
    train_dataset=SentenceReader().get_dataset(args.train_file),
    loss=loss,
    evaluator=dev,
)
trainer.train()
trainer.save_model(args.output)
print(dev(model))
