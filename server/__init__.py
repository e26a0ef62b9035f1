"""One frozen base model, many adapters: the service that answers classification requests."""

__version__ = "0.1.0"
