"""The data of a run: reading a corpus, bending instructions, measuring the distortion, prompts and answers.

Nothing in this folder imports torch, so `anit data` starts at once; tests/data/test_torch_free.py holds it to that.
"""
