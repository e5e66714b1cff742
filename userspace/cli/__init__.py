"""What the console scripts call."""
