"""Masked pre-training, fine-tuning and probes: recipes, input, augmentation, steps, runs."""
