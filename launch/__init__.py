"""What ./run executes."""
