"""Fine-tune the tiny digits model with TRL, and watch the gap in the trainer's own log.

    python recipes/sft_with_gap.py runs/sft                           # 40 seconds of one core
    python recipes/sft_with_gap.py runs/sft --report_to wandb

SFT sees the labelled answers of `train`, questions with false premises among them. GapCallback measures before training, after every
epoch and at the end. Its figures are in the log, in every tracker, and in RUN/gapclose.
"""

import argparse  # noqa: I001 (gapclose before the others: it lets torchvision be imported beside a CPU build of torch)
from pathlib import Path

from gapclose import GapCallback, ItemSet, ModelConfig, load_items, load_model, load_run
from gapclose.data.generated import write_generated
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from trl import SFTConfig, SFTTrainer


def dataset(items: ItemSet) -> Dataset:
    """The train items as TRL takes them: messages without paths, pictures beside them."""
    rows = []
    for item in items.select(split="train"):
        prompt = [m | {"content": [{k: v for k, v in p.items() if k != "path"} for p in m["content"]]} for m in item.messages]
        answer = [{"role": "assistant", "content": [{"type": "text", "text": item.options[item.gold].text}]}]
        rows.append({"prompt": prompt, "completion": answer, "images": [Image.open(items.root / path) for _, path in item.media]})
    return Dataset.from_list(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, help="directory of the run")
    parser.add_argument("--clips", type=int, nargs=4, default=[60, 40, 30, 40], help="of fit, train, val and test, 16 or more of each")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--report_to", nargs="*", default=[], help="trackers, as of transformers")
    given = parser.parse_args()
    if not (given.run / "items").exists():
        write_generated("digits", given.run / "items", seed=0, clips=given.clips, sound=False)  # TRL takes no audio
    items, loaded = load_items(given.run / "items"), load_model(ModelConfig(path="digits"))
    # of layers 7 and 8, counted from 0 here; the frozen probe is below them and reads the base model's own residuals
    adapters = LoraConfig(r=16, target_modules=["q_proj", "v_proj", "down_proj"], layers_to_transform=[6, 7], layers_pattern="layers")
    gpu = torch.cuda.is_available()
    arguments = SFTConfig(
        output_dir=str(given.run), num_train_epochs=given.epochs, per_device_train_batch_size=8, learning_rate=5e-3, max_length=None,
        logging_steps=5, save_strategy="no", report_to=given.report_to, use_cpu=not gpu, bf16=gpu,
    )  # fmt: skip
    watch, data = GapCallback(items, every="epoch", observe={"max_new_tokens": 4}), dataset(items)
    common = {"processing_class": loaded.processor, "peft_config": adapters, "callbacks": [watch]}
    SFTTrainer(loaded.model, args=arguments, train_dataset=data, **common).train()
    for record in load_run(given.run / "gapclose").records:
        print(f"{record.stage:12} action {record.action.value:.3f}  reading {record.reading.value:.3f}  {record.state}")


if __name__ == "__main__":
    main()
