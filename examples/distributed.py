"""Training with a large batch over several processes.

Run it with torchrun --nproc_per_node=2 examples/distributed.py --train_file ...

Each process embeds its own rows in mini-batches. The rows of all processes are negatives of each other.
"""

import argparse

from st_simcse import SentenceReader, SimCSETrainer, SimCSETrainingArguments, UnsupSimCSELoss, build_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="bert-base-uncased", help="folder, or name on the hub")
parser.add_argument("--train_file", required=True, help="text file with one sentence per line")
parser.add_argument("--output", default="output/distributed")
parser.add_argument("--batch", type=int, default=512, help="rows per process")
parser.add_argument("--max_steps", type=int, default=-1, help="stop after this many steps")
args = parser.parse_args()

model = build_model(args.model, pooling="cls")
loss = UnsupSimCSELoss(model, projection_head=True, mini_batch_size=32, gather_across_devices=True)
arguments = SimCSETrainingArguments(
    args.output, per_device_train_batch_size=args.batch, max_steps=args.max_steps, save_strategy="no", report_to="none"
)
trainer = SimCSETrainer(
    model=model, args=arguments, train_dataset=SentenceReader().get_dataset(args.train_file), loss=loss
)
trainer.train()
trainer.save_model(args.output)  # only process 0 writes
# If a process exits while others still write or communicate with it, they may abort.
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
