"""Profiles a training step: python benchmarks/profile_step.py --model MODEL --corpus SENTENCES.txt"""

from __future__ import annotations

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from st_simcse import SentenceReader, UnsupSimCSELoss, build_model
from st_simcse.models.precision import computes_in_bf16

# The operations of the profiler by group. Operations of no group are not shown.
GROUPS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear"),
    "random numbers of dropout": ("bernoulli_",),
    "copies and casts": ("copy_", "fill_", "clone"),
    "optimizer": ("_fused_adamw_",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    texts = SentenceReader().get_examples(args.corpus, max_examples=args.batch)
    model = build_model(args.model, pooling="mean", max_seq_length=32).train()
    loss = UnsupSimCSELoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def step(bf16: bool) -> None:
        features = model.preprocess([example.texts[0] for example in texts])
        features = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in features.items()}
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
            value = loss([features])
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    for bf16 in (False, True) if computes_in_bf16(model.device.type == "cpu") else (False,):
        step(bf16)
        with profile(activities=[ProfilerActivity.CPU]) as run:
            step(bf16)
        rows = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in run.key_averages()}
        total = sum(rows.values())
        print(f"\n{'bf16' if bf16 else 'float32'}: {total / 1e3:.0f} ms")
        for group, names in GROUPS.items():
            print(f"  {group:<28}{100 * sum(rows.get(name, 0) for name in names) / total:5.1f} %")


if __name__ == "__main__":
    main()
