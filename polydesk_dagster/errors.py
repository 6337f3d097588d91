"""What can go wrong with the world outside, sorted by whether trying again can help."""


class PolydeskError(Exception):
    """An expected failure whose message is fit for an operator: it names the thing, the value and the remedy."""


class TransientError(PolydeskError):
    """Trying again later may help: 408, 425, 429, 5xx, a connection that failed or was cut."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds that the other side asked us to wait, already bounded; None if it did not say."""


class PermanentError(PolydeskError):
    """Trying again cannot help; a person must change something. Never retried."""


class ConfigurationError(PermanentError):
    """The environment of this installation is wrong or half filled in."""
