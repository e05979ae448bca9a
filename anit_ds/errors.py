"""Exceptions that the command line turns into one sentence: exit code 2 for wrong input, 1 for a service that fails."""


class InputError(Exception):
    """One sentence for a person: the thing, where it stands (file, line, field), and what would be right."""


class ServiceError(RuntimeError):
    """A remote service kept failing after all retries."""
