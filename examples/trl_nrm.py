"""NRM inside TRL's SFTTrainer: one added class, the rest is TRL as everybody knows it.

    pip install trl && python examples/trl_nrm.py [MODEL]

Without a model it makes a tiny random one, which learns nothing worth having in seconds.
"""

import sys
import tempfile

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from anit_ds.adversarial.hf_trainer import AdversarialTrainerMixin
from anit_ds.tiny import save_tiny


class NRMTrainer(AdversarialTrainerMixin, SFTTrainer):
    """SFTTrainer whose step is L(e) + lambda * L(e + delta1)."""


def main() -> None:
    folder = tempfile.mkdtemp()
    name = sys.argv[1] if len(sys.argv) > 1 else save_tiny(f"{folder}/tiny")
    reviews = [("a warm and funny film", "positive"), ("two hours of boredom", "negative")] * 32
    rows = [{"prompt": f"Is it praise or blame?\nText: {t}\nAnswer:", "completion": f" {a}"} for t, a in reviews]
    trainer = NRMTrainer(
        model=AutoModelForCausalLM.from_pretrained(name),
        processing_class=AutoTokenizer.from_pretrained(name),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=8, target_modules="all-linear"),
        args=SFTConfig(
            output_dir=folder, per_device_train_batch_size=8, max_steps=8, logging_steps=2, learning_rate=1e-2,
            gradient_checkpointing=False, completion_only_loss=True, report_to="none", use_cpu=True, bf16=False,
        ),
    )  # fmt: skip
    trainer.train()


if __name__ == "__main__":
    main()
