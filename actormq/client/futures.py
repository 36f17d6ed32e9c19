"""What `send_async` returns: the outcome of one message, whenever it is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import final

    from actormq.client.results import SendResult
    from actormq.errors import ActorMQError

    @final
    class SendFuture:
        """The types of `actormq.kernels.collecting.SendFuture`, which cannot name the client's."""

        def done(self) -> bool: ...

        def result(self, timeout_s: float | None = None) -> SendResult: ...

        def exception(self, timeout_s: float | None = None) -> ActorMQError | None: ...

        def add_done_callback(self, callback: Callable[[SendFuture], None]) -> None: ...

        def __await__(self) -> Generator[None, None, SendResult]: ...

else:
    from actormq.kernels.collecting import SendFuture

__all__ = ["SendFuture"]
