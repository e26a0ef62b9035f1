"""`python -m benchmarks.gpu_check`: whether the code for GPUs is right on a card, and how fast."""
