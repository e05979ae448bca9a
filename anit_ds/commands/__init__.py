"""The commands of `anit`, one per file: each parses, calls the library, and prints. cli.py only lists them.

Heavy modules are imported inside the commands that need them, so that `--help` and `anit data` start without torch.
"""
