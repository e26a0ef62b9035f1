"""Every error that adaptermux raises on purpose, one tree.

    AdaptermuxError
    ├── SettingsError              the command line or the environment is wrong
    ├── CannotListen               the address is taken or not ours
    ├── DataError                  a data set cannot be read
    ├── RecipeError                a training recipe is wrong
    ├── TrainingFailed             a run came to nothing
    ├── BaseModelError             the base model cannot be loaded
    │   └── UnknownFamily          its architecture is not supported
    ├── AdapterRefused             an adapter folder is not served, and why
    │   ├── AdapterDamaged         a file is missing, cut, of the wrong shape or not finite
    │   ├── AdapterMismatch        it was trained on another base model
    │   ├── MethodUnsupported      its method, or an option that changes its result, is not supported
    │   ├── PickleRefused          its weights are a pickle file
    │   └── PathEscape             a name or link leads out of the adapter root
    ├── RequestError               the caller's mistake
    │   ├── BodyTooLarge
    │   ├── ClientLeft             nobody reads the answer; it is counted only
    │   ├── InvalidInput           a field has a wrong value
    │   │   ├── TooManyInputs
    │   │   └── TextTooLong
    │   ├── AdapterNotFound
    │   └── AdapterFailed          the adapter exists but was refused when it was loaded
    └── ServiceError               ours
        ├── Overloaded
        ├── EngineStopped
        ├── DeadlineExceeded       the caller's time ran out before the answer
        ├── LoadFailed             an adapter could not be brought into memory
        ├── OutOfMemory            a text does not fit into memory even alone
        └── ForwardFailed

Each class carries the HTTP `status` and the stable `code` that a client sees. Messages say what is
wrong, the value, and what would be right.
"""

from __future__ import annotations

from typing import ClassVar


class AdaptermuxError(Exception):
    """Base of the tree; `status` and `code` are what an HTTP client sees."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"


class SettingsError(AdaptermuxError):
    code = "settings_error"


class CannotListen(AdaptermuxError):
    code = "cannot_listen"


class DataError(AdaptermuxError):
    code = "data_error"


class RecipeError(AdaptermuxError):
    code = "recipe_error"


class TrainingFailed(AdaptermuxError):
    code = "training_failed"


class BaseModelError(AdaptermuxError):
    code = "base_model_error"


class UnknownFamily(BaseModelError):
    code = "unknown_family"


class AdapterRefused(AdaptermuxError):
    status = 422
    code = "adapter_refused"


class AdapterDamaged(AdapterRefused):
    code = "adapter_damaged"


class AdapterMismatch(AdapterRefused):
    code = "adapter_mismatch"


class MethodUnsupported(AdapterRefused):
    code = "method_unsupported"


class PickleRefused(AdapterRefused):
    code = "pickle_refused"


class PathEscape(AdapterRefused):
    code = "path_escape"


class RequestError(AdaptermuxError):
    status = 400
    code = "bad_request"


class BodyTooLarge(RequestError):
    status = 413
    code = "body_too_large"


class ClientLeft(RequestError):
    status = 499
    code = "client_left"


class InvalidInput(RequestError):
    """A field of the request has a wrong value; `field` is its path, such as `inputs[3].text`."""

    status = 422
    code = "invalid_input"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class TooManyInputs(InvalidInput):
    code = "too_many_inputs"


class TextTooLong(InvalidInput):
    code = "text_too_long"


class AdapterNotFound(RequestError):
    status = 404
    code = "adapter_not_found"


class AdapterFailed(RequestError):
    status = 409
    code = "adapter_failed"


class ServiceError(AdaptermuxError):
    status = 500
    code = "service_error"


class Overloaded(ServiceError):
    """More waits than can be answered in time; `retry_after_s` is the time after which a retry makes sense."""

    status = 503
    code = "overloaded"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineStopped(ServiceError):
    status = 503
    code = "engine_stopped"


class DeadlineExceeded(ServiceError):
    status = 504
    code = "deadline_exceeded"


class LoadFailed(ServiceError):
    status = 503
    code = "load_failed"


class OutOfMemory(ServiceError):
    status = 503
    code = "out_of_memory"


class ForwardFailed(ServiceError):
    code = "forward_failed"
