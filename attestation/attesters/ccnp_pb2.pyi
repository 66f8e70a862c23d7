from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetCcReportRequest(_message.Message):
    __slots__ = ("container_id", "user_data", "nonce")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    USER_DATA_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    user_data: str
    nonce: str
    def __init__(self, container_id: _Optional[str] = ..., user_data: _Optional[str] = ..., nonce: _Optional[str] = ...) -> None: ...

class GetCcReportResponse(_message.Message):
    __slots__ = ("cc_type", "cc_report")
    CC_TYPE_FIELD_NUMBER: _ClassVar[int]
    CC_REPORT_FIELD_NUMBER: _ClassVar[int]
    cc_type: int
    cc_report: bytes
    def __init__(self, cc_type: _Optional[int] = ..., cc_report: _Optional[bytes] = ...) -> None: ...

class GetCcEventlogRequest(_message.Message):
    __slots__ = ("container_id",)
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    def __init__(self, container_id: _Optional[str] = ...) -> None: ...

class GetCcEventlogResponse(_message.Message):
    __slots__ = ("event_logs",)
    EVENT_LOGS_FIELD_NUMBER: _ClassVar[int]
    event_logs: _containers.RepeatedCompositeFieldContainer[TcgEventlog]
    def __init__(self, event_logs: _Optional[_Iterable[_Union[TcgEventlog, _Mapping]]] = ...) -> None: ...

class TcgEventlog(_message.Message):
    __slots__ = ("imr_index", "event_type", "digests", "event")
    IMR_INDEX_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    imr_index: int
    event_type: int
    digests: _containers.RepeatedCompositeFieldContainer[TcgDigest]
    event: bytes
    def __init__(self, imr_index: _Optional[int] = ..., event_type: _Optional[int] = ..., digests: _Optional[_Iterable[_Union[TcgDigest, _Mapping]]] = ..., event: _Optional[bytes] = ...) -> None: ...

class TcgDigest(_message.Message):
    __slots__ = ("algo_id", "hash")
    ALGO_ID_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    algo_id: int
    hash: bytes
    def __init__(self, algo_id: _Optional[int] = ..., hash: _Optional[bytes] = ...) -> None: ...
