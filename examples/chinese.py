"""Unsupervised SimCSE on Chinese text. Trains on the sentences of the dev pairs, without their scores."""

import argparse

from datasets import concatenate_datasets

from st_simcse import SentenceReader, SimCSETrainer, SimCSETrainingArguments, UnsupSimCSELoss, build_model, load_sts

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="bert-base-chinese", help="folder, or name on the hub")
parser.add_argument("--dev_file", required=True, help="scored pairs: sentence1, sentence2, score")
parser.add_argument("--test_file", required=True, help="scored pairs to evaluate on before and after training")
parser.add_argument("--output", default="output/chinese")
parser.add_argument("--max_steps", type=int, default=-1, help="stop after this many steps")
args = parser.parse_args()

columns = [SentenceReader(column=column).get_dataset(args.dev_file) for column in ("sentence1", "sentence2")]
model = build_model(args.model, pooling="cls")
test = load_sts(args.test_file, name="test")
print("before", test(model))
arguments = SimCSETrainingArguments(
    args.output, max_length=64, max_steps=args.max_steps, save_strategy="no", report_to="none"
)
loss = UnsupSimCSELoss(model, projection_head=True)
trainer = SimCSETrainer(model=model, args=arguments, train_dataset=concatenate_datasets(columns), loss=loss)
trainer.train()
trainer.save_model(args.output)
print("after", test(model))
