"""Pretrained models of the Hugging Face hub, by ``hf:NAME`` in an experiment (extra `hf`)."""
