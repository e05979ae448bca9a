"""ANIT-DS: Adversarial Noisy Instruction Tuning of causal language models on DeepSpeed."""

__version__ = "0.1.0"
