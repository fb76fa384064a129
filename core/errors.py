"""What a user may be told went wrong: a cause and a remedy, in one line.

Everything that a person can mend by changing what they gave us is a `UserError`. The front doors (command line, lab,
bot) turn it into an exit code, an HTTP status or a chat reply; anything else is a bug and keeps its traceback.
"""


class UserError(Exception):
    """A mistake or a limit that the user can do something about.

    Args:
        cause: What is wrong, as a sentence without its full stop, naming the thing (file, key, value).
        remedy: What to do about it, likewise; may be empty where the cause says it all.
    """

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause, remedy)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return " ".join(part if part.endswith(("?", ".", "!")) else f"{part}." for part in self.args if part)


class ImageError(UserError):
    """A picture that cannot be read, or may not be: wrong format, broken, too large, too thin."""


class SettingsError(UserError):
    """A setting, preset or combination of settings that is not allowed."""


class WeightsError(UserError):
    """Network weights that are missing, damaged, unreachable, or lack a layer that was asked for."""


class RecipeError(UserError):
    """A picture that carries no recipe, or one that this version cannot repeat."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read or belongs to another run."""


class MemoryLimitError(UserError):
    """A run that does not fit in the memory it may use."""


class DivergenceError(UserError):
    """An optimisation that left the finite numbers and could not be brought back."""


class DeviceError(UserError):
    """A computing device that does not exist or cannot be used."""
