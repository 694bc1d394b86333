"""Training: one loop for every method, and what it needs around it.

Start at `loop`: `train(settings)` reads from top to bottom. `run` is what it returns, `forecast` what it
would cost. The other files hold one noun each.
"""
