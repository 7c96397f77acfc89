"""``bench``: what a step of every method costs, against the floor, full fine-tuning and PEFT's own implementation."""
