"""The model: the paper's modules and the layers and frame operations that baselines share."""
