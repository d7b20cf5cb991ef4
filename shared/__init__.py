"""The parts that web and worker share: the ledger, storage, the queue, the response cache."""
