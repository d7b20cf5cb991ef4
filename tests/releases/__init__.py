"""Data folders that former releases have left behind, and the scripts that made them."""
