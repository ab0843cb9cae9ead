"""Runs a service: uvicorn in one process, and a shutdown that loses nothing."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette

from splitattn.errors import InputError
from splitattn.serving.app import create_app
from splitattn.serving.logs import LOG
from splitattn.serving.settings import Settings

if TYPE_CHECKING:
    from splitattn.serving.served import Model

_MORE = 10.0  # seconds that a shutdown may take beyond the longest request
_LAST_REQUESTS = 0.25  # seconds, after the socket has closed, for what is on its way
_KEEP_ALIVE = 75  # seconds, longer than usual load balancers', so that they close first
_BACKLOG = 2048


def serve(
    model: "Model",
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a model until SIGTERM or SIGINT.

    At SIGTERM `/readyz` says 503, and every answer says `Connection: close`. For `drain_wait`
    seconds requests are still taken; then the socket closes, accepted requests are answered, and
    the process ends. SIGINT does the same without the wait. A second signal ends it at once.

    Args:
        model: a `Classifier`, `Detector` or `Segmenter`.
        settings: limits and options.
        host, port: where to listen; port 0 takes a free one.
        on_ready: called with the URL once requests are answered.

    Raises:
        InputError: the address cannot be listened on.
        SystemExit: the model cannot be prepared.
    """
    listening = _listen(host, port)
    app = create_app(model, settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=int(settings.deadline + settings.body_timeout + _MORE),
    )
    _allow_open_files()
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_run(uvicorn.Server(config), app, settings, listening, on_ready))


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. It is opened first, so that an address in use is an error at once.

    It states its protocol. asyncio sets TCP_NODELAY only on sockets that it knows to be TCP;
    without it, an answer waits 40 ms for the client's acknowledgment.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        with ExitStack() as unless_it_works:
            listening = unless_it_works.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(_BACKLOG)
            unless_it_works.pop_all()
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another "
            "--port or --host, or end what listens there"
        ) from None
    return listening


async def _run(
    server: uvicorn.Server,
    app: Starlette,
    settings: Settings,
    listening: socket.socket,
    on_ready: Callable[[str], None],
) -> None:
    host, port = listening.getsockname()[:2]
    running = asyncio.create_task(server.serve(sockets=[listening]))
    while not (server.started or running.done()):
        await asyncio.sleep(0.01)
    if running.done():
        await running
        return
    # These replace uvicorn's handlers, which would close the socket before load balancers notice.
    loop, ends = asyncio.get_running_loop(), list[asyncio.Task[None]]()

    def end(wait: float) -> None:
        if ends:
            # uvicorn would log a traceback for each request that is cut off now.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            server.force_exit = server.should_exit = True
            return
        ends.append(asyncio.create_task(_drain(server, app, wait)))

    loop.add_signal_handler(signal.SIGTERM, end, settings.drain_wait)
    loop.add_signal_handler(signal.SIGINT, end, 0.0)
    await app.state.starting
    if app.state.service.state == "failed":
        server.should_exit = True
        await running
        raise SystemExit(1)  # the log says why; whoever supervises this process may start it again
    if not ends:  # a signal may come while the model is prepared
        shown = f"[{host}]" if ":" in host else host
        LOG.info("%s is served at http://%s:%d", app.state.service.served.model, shown, port)
        on_ready(f"http://{shown}:{port}")
    # Objects that exist now stay until the end. A full garbage collection would go through all of
    # them, and all answers would wait for it (docs/log.md).
    gc.freeze()
    try:
        await running
    finally:
        gc.unfreeze()


async def _drain(server: uvicorn.Server, app: Starlette, wait: float) -> None:
    app.state.service.drain()
    await asyncio.sleep(wait)
    for listening in server.servers:
        listening.close()
    await asyncio.sleep(_LAST_REQUESTS)
    server.should_exit = True


def _allow_open_files() -> None:
    """Raise the limit of open files as far as the system allows: each connection is one."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # some systems take no "infinity"
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
