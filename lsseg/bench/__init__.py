"""Implements ``lsseg bench``: speed and memory of the numeric core and of the methods, as ratios within one run."""
