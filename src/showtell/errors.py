"""Every error showtell raises on purpose.

```
ShowtellError
├── ArgumentError         (ValueError)         an option, a configuration or a tensor shape that makes no sense
├── ImageError            (ValueError)         a photo that can't be read
├── DataError             (ValueError)         a dataset with bad rows
├── FormatError           (ValueError)         a saved captioner, vocabulary or cache that isn't what it says
├── NotFoundError         (FileNotFoundError)  no such file, folder or Hub repository
├── HubError              (OSError)            the Hub can't be reached, or refuses
├── ComponentError        (LookupError)        no encoder, decoder or recipe of that name
├── MissingPackageError   (ImportError)        an optional package is needed and absent
└── RunError              (RuntimeError)       a run that can't go on: NaN loss, another run's folder
```

Each also inherits the builtin that a caller would expect, so `except ValueError` keeps working. A message says
what was given, what was expected and what to do next.
"""

__all__ = [
    "ArgumentError",
    "ComponentError",
    "DataError",
    "FormatError",
    "HubError",
    "ImageError",
    "MissingPackageError",
    "NotFoundError",
    "RunError",
    "ShowtellError",
]


class ShowtellError(Exception):
    """The parent of every error that showtell raises on purpose."""


class ArgumentError(ShowtellError, ValueError):
    """An option, a configuration value or a tensor shape makes no sense."""


class ImageError(ShowtellError, ValueError):
    """A photo can't be read; the message names the file."""


class DataError(ShowtellError, ValueError):
    """A dataset has bad rows; the message names file and line."""


class FormatError(ShowtellError, ValueError):
    """A saved captioner, vocabulary or feature cache isn't what it claims to be."""


class NotFoundError(ShowtellError, FileNotFoundError):
    """A file, folder or Hub repository doesn't exist."""


class HubError(ShowtellError, OSError):
    """The Hugging Face Hub can't be reached or refuses the request."""


class ComponentError(ShowtellError, LookupError):
    """No encoder, decoder or recipe has that name."""


class MissingPackageError(ShowtellError, ImportError):
    """An optional package is needed and isn't installed; the message names the extra."""


class RunError(ShowtellError, RuntimeError):
    """A run can't go on; the message says how to continue or start over."""
