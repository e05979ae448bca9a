"""Semantic distortion: how far the noise bent the instructions' meaning, and beta, one number for a data set."""

from __future__ import annotations

from anit_ds.data.distortion.beta import DistanceTally, Normaliser, normaliser
from anit_ds.data.distortion.rule_based import Distance, measure

__all__ = ["Distance", "DistanceTally", "Normaliser", "measure", "normaliser"]
