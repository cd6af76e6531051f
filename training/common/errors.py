"""User errors and their one-line message. All other exceptions keep their traceback."""

import os

from .secrets import redact_text
from .telling import one_line
from .versions import how_to_install, warn_of_versions

USER_ERRORS = (ValueError, OSError, MemoryError)
# Libraries that talk to the Hub. Their errors may not be OSErrors; huggingface_hub has changed library.
NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp")


def is_bad_input(error: BaseException) -> bool:
    """Return whether an error is shown without traceback. A package that is not installed counts too."""
    if isinstance(error, ModuleNotFoundError):
        return error.name is not None
    if of_network(error) or of_lost_process(error):
        return True
    # transformers raises this for an invalid config field. It is not a ValueError; compare the class
    # name, because its module may not be loaded.
    names = {cls.__name__ for cls in type(error).__mro__}
    return isinstance(error, USER_ERRORS) or "StrictDataclassError" in names


def of_network(error: BaseException) -> bool:
    """Return whether a library that talks to the Hub raised the error."""
    return type(error).__module__.partition(".")[0] in NETWORK


def of_lost_process(error: BaseException) -> bool:
    """Return whether another process of the run has died: gloo and NCCL report a closed connection."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError"):
        return True
    closed = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in closed)


def in_one_line(error: BaseException, extra: str) -> str:
    """Return the message of a user error: one printable line of at most 500 characters, no secrets.

    Args:
        extra: the extra of setup.py that installs a missing package.
    """
    if isinstance(error, ModuleNotFoundError):
        told = warn_of_versions()
        missing = f"the package {error.name!r} is not installed"
        # A library of another version may have moved the module, so warn of versions first.
        return one_line(f"{missing}; {told or how_to_install(extra)}")
    told = redact_text(str(error)).strip() or type(error).__name__
    if of_network(error):
        place = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        told = (
            f"cannot reach the Hub ({place}): {told}: check the connection, or give a local folder"
        )
    if of_lost_process(error):
        told = f"another process of this run has died ({one_line(told, 200)}); the same command continues"
    return one_line(told)
