"""ST's trainer with what SimCSE needs: its arguments, several processes, sharding, checkpoints, the model card."""
