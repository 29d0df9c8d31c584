"""What runs inside a function: the task, its data, the training loop, a generation's life."""
