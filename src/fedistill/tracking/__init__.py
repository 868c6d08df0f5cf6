"""Callbacks that log a run to TensorBoard, MLflow or Weights & Biases (extra ``track``)."""
