"""Trackers that mirror a run: Weights & Biases, TensorBoard, Trackio and MLflow."""
