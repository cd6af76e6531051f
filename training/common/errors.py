"""Which exceptions are user errors, and their one-line message. Others keep their traceback."""

import os

from .secrets import redact_text
from .telling import one_line
from .versions import how_to_install, warn_of_versions

USER_ERRORS = (ValueError, OSError, MemoryError)
# Libraries that talk to the Hub; their errors need be no OSError, and huggingface_hub changes library.
NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp")


def is_bad_input(error: BaseException) -> bool:
    """Whether an error is told without its traceback; a package that is not installed is one too."""
    if isinstance(error, ModuleNotFoundError):
        return error.name is not None
    if of_network(error) or of_lost_process(error):
        return True
    # A field of a config of transformers; it is no ValueError, and its module need not be loaded.
    names = {cls.__name__ for cls in type(error).__mro__}
    return isinstance(error, USER_ERRORS) or "StrictDataclassError" in names


def of_network(error: BaseException) -> bool:
    """Whether a library that talks to the Hub raised it."""
    return type(error).__module__.partition(".")[0] in NETWORK


def of_lost_process(error: BaseException) -> bool:
    """Whether another process of the same run is gone: gloo's and NCCL's errors of a closed connection."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError"):
        return True
    closed = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in closed)


def in_one_line(error: BaseException, extra: str) -> str:
    """The message of bad input: one printable line, without secrets, of at most 500 characters.

    extra: of setup.py, which brings a package that is missing.
    """
    if isinstance(error, ModuleNotFoundError):
        told = warn_of_versions()
        missing = f"the package {error.name!r} is not installed"
        # A module that a library has moved is missing too.
        return one_line(f"{missing}; {told or how_to_install(extra)}")
    told = redact_text(str(error)).strip() or type(error).__name__
    if of_network(error):
        place = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        told = (
            f"cannot reach the Hub ({place}): {told}: check the connection, or give a local folder"
        )
    if of_lost_process(error):
        told = f"another process of this run is gone ({one_line(told, 200)}); the same command continues"
    return one_line(told)
