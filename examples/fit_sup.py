"""Supervised SimCSE with InputExamples, a DataLoader and model.fit."""

import argparse

from torch.utils.data import DataLoader

from st_simcse import SupSimCSELoss, TripletReader, build_model, load_sts

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="bert-base-uncased", help="folder, or name on the hub")
parser.add_argument("--train_file", required=True, help="csv with the columns sent0, sent1, hard_neg")
parser.add_argument("--dev_file", required=True, help="scored pairs: sentence1, sentence2, score")
parser.add_argument("--output", default="output/fit_sup")
parser.add_argument("--max_steps", type=int, default=-1, help="stop after this many steps")
args = parser.parse_args()

model = build_model(args.model, pooling="cls")
loss = SupSimCSELoss(model)
loader = DataLoader(TripletReader().get_examples(args.train_file), batch_size=64, shuffle=True)

# By default, fit warms up for 10,000 steps. On less data, it would never reach the learning rate.
steps = args.max_steps if args.max_steps > 0 else len(loader)
model.fit(
    [(loader, loss)],
    evaluator=load_sts(args.dev_file),
    epochs=1,
    steps_per_epoch=steps,
    warmup_steps=steps // 10,
    optimizer_params={"lr": 3e-5},
    output_path=args.output,
)
print(load_sts(args.dev_file)(model))
