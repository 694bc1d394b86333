"""Running a model: requests in, tokens out.

Read in this order: generator (the whole path of a call), sampling, stop, request, runner.
"""
