"""What train.py is made of: configuration, the loop, the objective, optimizers, checkpoints."""
