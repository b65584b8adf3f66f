"""What goes wrong here, whoever is at fault."""


class GraftError(Exception):
    """The service refused, could not be asked, or sent what cannot be used."""


class FileError(GraftError):
    """A file or folder here that cannot be read or written."""
