"""One arm: the round loop, clients, executors that carry frames to them, evaluation and the ledger."""
