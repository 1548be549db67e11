"""Result tables, the pictures drawn from them, and the tables printed of them.

Neither torch nor a model is needed here: what a run wrote is enough.
"""
