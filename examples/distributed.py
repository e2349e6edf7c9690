"""A large batch over several processes: torchrun --nproc_per_node=2 examples/distributed.py --train_file ...

Every process embeds its own rows, in mini-batches; all rows of all processes are each other's negatives.
"""

import argparse

from st_simcse import SentenceReader, SimCSETrainer, SimCSETrainingArguments, UnsupSimCSELoss, build_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="bert-base-uncased", help="folder, or name on the hub")
parser.add_argument("--train_file", required=True, help="one sentence a line")
parser.add_argument("--output", default="output/distributed")
parser.add_argument("--batch", type=int, default=512, help="rows a process")
parser.add_argument("--max_steps", type=int, default=-1, help="stop early, to try things out")
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
trainer.save_model(args.output)  # process 0 writes
# A process that exits while others still write, or talk to it, may abort.
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
