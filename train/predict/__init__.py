"""New videos through a finished run's encoder and model: ``python -m train predict``."""
