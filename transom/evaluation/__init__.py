"""How good a model is, in the field's own numbers, each with an interval and beside a cheap baseline.

Read in this order: translation, classification, calibration, baselines; then examine, which puts
them together for a run's folder.
"""
