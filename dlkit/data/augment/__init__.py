"""Augmentations as frozen values that compose before they touch pixels."""
