"""Training by Adam: early-stopped runs, and the ES and OT reference weights (paper, appendix C)."""

from thermosphere.training.early_stopping import EarlyStopped, train_early_stopped
from thermosphere.training.references import References, train_references

__all__ = ["EarlyStopped", "References", "train_early_stopped", "train_references"]
