"""LoRA fine-tuning of a small transformer."""
