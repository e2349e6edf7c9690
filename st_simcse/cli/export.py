"""``st-simcse export``: saves a model for users of transformers' AutoModel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from st_simcse.cli.libraries import import_libraries
from st_simcse.cli.parsing import check_outputs, parse


@dataclass
class ExportArguments:
    model: str = field(metadata={"help": "Folder of a saved model, or its name on the hub."})
    output_dir: str = field(metadata={"help": "Folder for the transformer and its tokenizer."})


def run(argv: Sequence[str]) -> str:
    """Saves the model, prints the code that computes embeddings with it, and returns the expression for them.

    Raises:
        ValueError: If :func:`~st_simcse.models.checkpoints.save_transformer` refuses the model.
        OSError: If the model cannot be loaded or the folder cannot be written. The folder is checked first.
    """
    example = "st-simcse export --model output --output_dir for-automodel"
    (args,) = parse("export", argv, ExportArguments, example=example)
    check_outputs(args)

    import_libraries()
    from st_simcse.models.checkpoints import load_model, loading_class, save_transformer

    model = load_model(args.model)
    expression = save_transformer(model, args.output_dir)
    kind = loading_class(model)
    prompts = {name: prompt for name, prompt in model.prompts.items() if prompt}
    how = f"prompts = {prompts!r}  # prepend the right one to each text: {kind} does not\n" if prompts else ""
    needs_torch = "import torch\n" if "torch." in expression else ""
    print(
        f"saved to {args.output_dir}. This code computes embeddings with it:\n\n"
        f"{needs_torch}from transformers import AutoTokenizer, {kind}\n\n"
        f"{how}"
        f"tokenizer, model = (kind.from_pretrained({args.output_dir!r}) for kind in (AutoTokenizer, {kind}))\n"
        'inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")\n'
        f"outputs = model(**inputs)\nembeddings = {expression}"
    )
    return expression
