"""What is bad input, and how it is told in one line. Anything else is a fault of ours and keeps its
traceback."""

USER_ERRORS = (ValueError, OSError, MemoryError)


def is_bad_input(error: BaseException) -> bool:
    """Whether an error is told without its traceback; a package that is not installed is one too."""
    if isinstance(error, ModuleNotFoundError):
        return error.name is not None
    # A config's field of the wrong type or value; it is no ValueError, and its module need not be
    # loaded to know its name.
    names = {cls.__name__ for cls in type(error).__mro__}
    return isinstance(error, USER_ERRORS) or "StrictDataclassError" in names


def in_one_line(error: BaseException, extra: str) -> str:
    """The message of bad input. extra: of setup.py, which brings a package that is missing."""
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name!r} is not installed; pip install 'maya-vlm[{extra}]'"
    return " ".join(str(error).split()) or type(error).__name__
