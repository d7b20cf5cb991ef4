"""The web process: HTTP in front of storage, ledger and response cache. This process decodes no pixels."""
