"""Every error that adaptermux raises on purpose, one tree.

    AdaptermuxError
    ├── SettingsError              the command line or the environment is wrong
    ├── CannotListen               the address is taken or not ours
    ├── DataError                  a data set, or a file to classify, cannot be read
    ├── RecipeError                a training recipe is wrong
    ├── TrainingFailed             a run came to nothing
    ├── ClassifyFailed             a file was not classified to its end
    │   ├── InputRefused           the server refuses one text of a request
    │   └── BatchTooLarge          the server takes fewer texts, or fewer bytes, in one request
    ├── BaseModelError             the base model cannot be loaded
    │   └── UnknownFamily          its architecture is not supported
    ├── AdapterRefused             an adapter folder is not served, and why
    │   ├── AdapterDamaged         a file is missing, cut, of the wrong shape or not finite
    │   ├── AdapterMismatch        it was trained on another base model
    │   ├── MethodUnsupported      its method, or an option that changes its result, is not supported
    │   ├── PickleRefused          its weights are a pickle file
    │   └── PathEscape             a name or link leads out of the adapter root
    ├── RequestError               the caller's mistake
    │   ├── InvalidHttp            what came is no request
    │   ├── InvalidJson            the body is no JSON
    │   ├── BodyTooLarge
    │   ├── BodyTooSlow            it did not come in time
    │   ├── HeadTooLarge           address or headers are too long, or too many
    │   ├── UnsupportedMediaType
    │   ├── NoSuchRoute
    │   ├── MethodNotAllowed
    │   ├── ClientLeft             nobody reads the answer; it is counted only
    │   ├── InvalidInput           a field has a wrong value
    │   │   ├── TooManyInputs
    │   │   └── TextTooLong
    │   ├── NotAuthenticated       no key, or one that is not known
    │   ├── ScopeMissing           the key does not allow this
    │   ├── AdapterForbidden       the key does not allow an adapter of that name
    │   ├── QuotaExceeded          the tenant has used up what it may
    │   ├── AdapterNotFound
    │   ├── SourceForbidden        the kind or place of a source is not allowed here
    │   ├── SourceNotFound         there is no adapter at a source
    │   ├── AdapterFailed          the adapter exists but was refused when it was loaded
    │   └── Conflict               what is asked does not fit what is
    └── ServiceError               ours
        ├── Overloaded
        ├── EngineStopped
        ├── DeadlineExceeded       the caller's time ran out before the answer
        ├── LoadFailed             an adapter could not be brought into memory
        ├── SourceUnreachable      a source does not answer, or changed while it was read
        ├── EvidenceFailed         what decisions rest on cannot be read
        ├── StorageFailed          our own disk is full, read-only or broken
        ├── OutOfMemory            a text does not fit into memory even alone
        └── ForwardFailed

Each class carries the HTTP `status` and the stable `code` that a client sees. Messages say what is
wrong, the value, and what would be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

RESTART_S = 5
"""After which another server may stand behind the address."""
ROOM_S = 1
"""After which others may have left the memory that was wanted."""

MEND_S = 30
"""After which a file that is wrong may have been mended."""


class AdaptermuxError(Exception):
    """Base of the tree; `status` and `code` are what an HTTP client sees."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retry_after_s: int | None = None
    """After how many seconds the same request may succeed."""

    def __reduce__(self) -> tuple[object, ...]:
        """Made again in another process as it is, whatever its class is made of."""
        return _again, (type(self), self.args, self.__dict__)


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


class ClassifyFailed(AdaptermuxError):
    code = "classify_failed"


class InputRefused(ClassifyFailed):
    """`index` is the place of the text in the request."""

    code = "input_refused"

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class BatchTooLarge(ClassifyFailed):
    code = "batch_too_large"


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


class InvalidHttp(RequestError):
    code = "invalid_http"


class InvalidJson(RequestError):
    code = "invalid_json"


class UnsupportedMediaType(RequestError):
    status = 415
    code = "unsupported_media_type"


class NoSuchRoute(RequestError):
    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    """allow: the methods that the route takes."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class BodyTooLarge(RequestError):
    status = 413
    code = "body_too_large"


class BodyTooSlow(RequestError):
    status = 408
    code = "body_too_slow"


class HeadTooLarge(RequestError):
    status = 431
    code = "head_too_large"


class ClientLeft(RequestError):
    status = 499
    code = "client_left"


class InvalidInput(RequestError):
    """Fields of the request have wrong values; a field is a path such as `inputs[3].text`.

    problems: every field that is wrong, with what is wrong of it.
    """

    status = 422
    code = "invalid_input"

    def __init__(self, field: str, message: str, others: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__("; ".join([message, *(text for _, text in others)]))
        self.field = field
        self.problems = ((field, message), *others)


class TooManyInputs(InvalidInput):
    code = "too_many_inputs"


class TextTooLong(InvalidInput):
    code = "text_too_long"


class NotAuthenticated(RequestError):
    status = 401
    code = "not_authenticated"


class ScopeMissing(RequestError):
    status = 403
    code = "scope_missing"


class AdapterForbidden(RequestError):
    status = 403
    code = "adapter_forbidden"


class QuotaExceeded(RequestError):
    status = 429
    code = "quota_exceeded"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AdapterNotFound(RequestError):
    status = 404
    code = "adapter_not_found"


class SourceForbidden(RequestError):
    status = 403
    code = "source_forbidden"


class SourceNotFound(RequestError):
    status = 422
    code = "source_not_found"


class AdapterFailed(RequestError):
    status = 409
    code = "adapter_failed"


class Conflict(RequestError):
    status = 409
    code = "conflict"


class ServiceError(AdaptermuxError):
    status = 500
    code = "service_error"


class Overloaded(ServiceError):
    """More waits than can be answered in time; `retry_after_s` is the time after which a retry makes sense."""

    status = 503
    code = "overloaded"
    retry_after_s: int

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineStopped(ServiceError):
    status = 503
    code = "engine_stopped"
    retry_after_s = RESTART_S


class DeadlineExceeded(ServiceError):
    status = 504
    code = "deadline_exceeded"


class LoadFailed(ServiceError):
    status = 503
    code = "load_failed"
    retry_after_s = ROOM_S


class SourceUnreachable(ServiceError):
    status = 502
    code = "source_unreachable"


class EvidenceFailed(ServiceError):
    status = 503
    code = "evidence_failed"
    retry_after_s = MEND_S


class StorageFailed(ServiceError):
    status = 507
    code = "storage_failed"


class OutOfMemory(ServiceError):
    status = 503
    code = "out_of_memory"
    retry_after_s = ROOM_S


class ForwardFailed(ServiceError):
    code = "forward_failed"


def _again(kind: type[AdaptermuxError], args: tuple[object, ...], state: dict[str, object]) -> AdaptermuxError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error
