"""What train.py is made of: configuration, optimizer, schedule, checkpoints, evaluation, the loop."""
