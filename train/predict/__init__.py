"""Inference: new clips through the encoder and model of a finished run."""
