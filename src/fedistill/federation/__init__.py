"""One arm: the round loop, clients and what carries frames to them, evaluation, the ledger."""
