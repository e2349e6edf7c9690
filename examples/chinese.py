"""Unsupervised SimCSE on Chinese text, with the settings of the preset unsup-zh."""

import argparse

from st_simcse import SentenceReader, SimCSETrainer, SimCSETrainingArguments, UnsupSimCSELoss, build_model, load_sts

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="bert-base-chinese", help="folder, or name on the hub")
parser.add_argument("--train_file", required=True, help="sentences, or pairs such as ATEC.train.data")
parser.add_argument("--dev_file", required=True, help="scored pairs to choose the best checkpoint by")
parser.add_argument("--test_file", required=True, help="scored pairs to evaluate on before and after training")
parser.add_argument("--output", default="output/chinese")
parser.add_argument("--max_steps", type=int, default=-1, help="stop after this many steps")
args = parser.parse_args()

dataset = SentenceReader().get_dataset(args.train_file).shuffle(seed=0)
model = build_model(args.model, pooling="cls", dropout=0.3)
test = load_sts(args.test_file, name="test")
print("before", test(model))
arguments = SimCSETrainingArguments(
    args.output,
    max_length=64,
    max_steps=args.max_steps,
    learning_rate=1e-5,
    lr_scheduler_type="constant",
    max_grad_norm=0,  # no clipping
    eval_strategy="steps",
    eval_steps=10,
    save_steps=10,
    save_total_limit=1,
    load_best_model_at_end=True,
    metric_for_best_model="eval_dev_spearman_cosine",
    report_to="none",
)
trainer = SimCSETrainer(
    model=model,
    args=arguments,
    train_dataset=dataset.select(range(min(10_000, len(dataset)))),
    loss=UnsupSimCSELoss(model, symmetric=True),
    evaluator=load_sts(args.dev_file, name="dev"),
)
trainer.train()
trainer.save_model(args.output)
print("after", test(model))
