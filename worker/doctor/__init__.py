"""`python -m worker.doctor`: compares ledger and storage."""
