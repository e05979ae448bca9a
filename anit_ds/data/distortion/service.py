"""A client for any OpenAI-compatible endpoint: retried with exponential back-off, its key never shown.

The key comes from the environment variable OPENAI_API_KEY only. The `openai` client retries 408, 409, 429, 5xx,
time-outs and dropped connections by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from anit_ds.errors import InputError, ServiceError

if TYPE_CHECKING:
    from openai import OpenAI

KEY_VARIABLE = "OPENAI_API_KEY"


def client(base_url: str | None, *, timeout: float, max_retries: int) -> OpenAI:
    """A client for `base_url` (OpenAI's own by default). Raises InputError where a key is needed and not set.

    `timeout` is in seconds per request. A server of one's own, given by `base_url`, may need no key.
    """
    from openai import OpenAI

    key = os.environ.get(KEY_VARIABLE)
    if not key and base_url is None:
        raise InputError(f"the OpenAI API needs a key in the environment variable {KEY_VARIABLE}, and it is not set")
    return OpenAI(api_key=key or "not-needed", base_url=base_url, timeout=timeout, max_retries=max_retries)


@contextmanager
def explained_errors(what: str) -> Iterator[None]:
    """Turn the client's exceptions into one sentence without the key.

    Raises InputError where the request itself is refused (a wrong key, an unknown model), ServiceError where the
    service failed.
    """
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        message = f"{what}: the service answered {error.status_code}: {_without_key(str(error))}"
        if error.status_code < 500 and error.status_code not in (408, 409, 429):
            raise InputError(message) from None
        raise ServiceError(message) from None
    except openai.APIConnectionError as error:
        raise ServiceError(f"{what}: {type(error).__name__}: {_without_key(str(error))}") from None


def _without_key(text: str) -> str:
    key = os.environ.get(KEY_VARIABLE)
    return text.replace(key, "[key]") if key else text
