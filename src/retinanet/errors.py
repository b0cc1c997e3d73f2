"""What goes wrong in a way that the user can fix."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can fix.

    The message names the file, line or box, says what was expected and what to do. The command line prints it and exits
    with code 2; a Python caller catches it as a ``ValueError``.
    """


class Interrupted(UserError):
    """Work was stopped by a signal after its state had been saved."""
