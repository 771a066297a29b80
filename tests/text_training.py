"""A tiny text model, of which transformers' own trainer trains the last layer, on a few items of *people*."""

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tiny_families import llama, spread

from gapclose import ItemSet
from gapclose.data.generated import people
from gapclose.training.trl.dataset import messages_for_trl

SETTINGS = {
    "observe": {"batch_size": 64, "shard_batches": 1, "max_new_tokens": 12},
    "probe": {"families": ["logistic"], "c": [0.01], "folds": 2},
    "gap": {"replicates": 100},
}


def few_passages(directory: Path) -> ItemSet:
    return people.write(directory, clips={"fit": 6, "train": 3, "val": 4, "test": 4})


def text_model() -> tuple[Any, Any]:
    torch.manual_seed(0)
    tokenizer, model = llama()
    spread(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers.3." in name)
    return tokenizer, model


def trainer_of_text(directory: Path, items: ItemSet, *callbacks: hf.TrainerCallback, model: Any = None, **arguments: Any) -> hf.Trainer:
    """Five steps of a global batch of four, unless ``arguments`` says otherwise."""
    tokenizer, whole = text_model()
    texts = [
        tokenizer.apply_chat_template(messages_for_trl(i, multimodal=False), tokenize=False) + i.options[0].text
        for i in items.select(split="train").items[:12]
    ]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][-40:] for text in texts]
    common = {"use_cpu": True, "save_strategy": "no", "logging_steps": 1, "learning_rate": 0.01}
    how = common | {"output_dir": str(directory), "per_device_train_batch_size": 4, "max_steps": 5, "report_to": []} | arguments
    data = [{"input_ids": i, "labels": i} for i in ids]
    return hf.Trainer(
        model or whole, hf.TrainingArguments(**how), train_dataset=data, eval_dataset=data[:4], processing_class=tokenizer, callbacks=list(callbacks),
        data_collator=hf.default_data_collator,
    )  # fmt: skip
