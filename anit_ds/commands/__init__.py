"""The commands of `anit`, one a file: each parses, calls the library, and prints. cli.py only lists them."""
