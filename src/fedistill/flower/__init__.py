"""The same round loop on a real network: Flower carries the frames. Needs the extra ``flower``."""
