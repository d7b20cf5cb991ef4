"""What web and worker have in common: the ledger, storage, the queue, the response cache."""
