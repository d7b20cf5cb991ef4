"""The web process: HTTP in front of storage, ledger and response cache. It decodes no pixels."""
