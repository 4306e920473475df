"""Joins a Ray cluster, or starts one on this machine."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from uturn.core.checks import one_line, shown

_log = logging.getLogger("uturn")
_addresses: list[str] = []  # addresses of the connection made by this module
_WAIT = 10.0  # seconds for an address to answer
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MEMORY = 2**27  # bytes of the object store, which carries only small messages


def _checked_address(address: Any) -> str:
    """The address of a cluster: "local", "auto", "ray://host:port" or "host:port"; ValueError for other values."""
    pattern = r"local|auto|(ray://)?(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}"
    if not isinstance(address, str) or not re.fullmatch(pattern, address):
        raise ValueError(f'cluster = {shown(address)}: expected "local", "auto", "ray://host:port" or "host:port"')
    return address


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Context in which this process is a driver of the cluster at an address; its value is the module ray.

    "local" starts Ray on the loopback interface of this machine, without dashboard, and stops it at the end. An existing
    connection is used and not closed.

    Raises
    ------
    ValueError
        If Ray is not installed, nothing answers at the address, or Ray refuses, for example because versions differ.
    """
    address = _checked_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise ValueError("cluster: Ray is not installed; pip install 'uturn[cluster]'") from None
    if ray.is_initialized():
        if address not in _addresses:
            _log.info(f"this process is connected to Ray already; that connection is used, and not cluster = {address!r}")
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    folder = None
    if address == "local":
        folder = tempfile.mkdtemp(prefix="uturn-ray-", dir=None if len(tempfile.gettempdir()) < 30 else "/tmp")
        # One node on the loopback interface; nothing listens to other hosts.
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "_temp_dir": folder}
        options |= {"object_store_memory": _MEMORY}
    else:
        _check_port(address, _address_here() if address == "auto" else address)
    try:
        with _loopback_allowed() if address == "local" else nullcontext():
            _init(ray, address, options)
        _addresses.append(address)
        yield ray
    finally:
        with uninterrupted():
            _addresses.clear()
            with suppress(Exception):
                ray.shutdown()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _init(ray: Any, address: str, options: dict[str, Any]) -> None:
    try:
        with _own_signals():
            ray.init(address, **options)
    except (Exception, SystemExit) as error:  # Ray ends the process if the cluster rejects it
        text = " ".join(str(error).split())
        if "ersion" in text:
            raise ValueError(f"cluster = {address!r}: versions differ: {text[:400]}") from None
        remote = (
            "from a machine that is no node of the cluster, connect with ray://host:10001; a cluster that asks for a token "
            "(ray start makes one) needs RAY_AUTH_MODE=token here too"
        )
        way_out = "see whether Ray starts by itself (ray start --head)" if address == "local" else remote
        raise ValueError(f"cluster = {address!r}: Ray does not connect ({one_line(error)}); {way_out}") from None


def _check_port(given: str, address: str) -> None:
    """ValueError if nothing answers at an address; Ray would try for minutes, and then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_WAIT):
            pass
    except (OSError, OverflowError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        where = "there" if given == address else f"at {address}, the address of the Ray that ran here last (or RAY_ADDRESS)"
        raise ValueError(
            f"cluster = {given!r}: nothing answers {where} ({reason}); start Ray on that host (ray start --head), and give the "
            f"port of its own (6379) or, with ray://, that of its client server (10001)"
        ) from None


def _address_here() -> str:
    """The address of the Ray cluster of this machine; ValueError if there is none."""
    from ray._private import services

    try:
        return str(services.canonicalize_bootstrap_address_or_die("auto"))
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"cluster = 'auto': no Ray runs on this machine ({one_line(error)}); start it (ray start --head), give the address "
            f"of a cluster, or take --cluster local"
        ) from None


@contextmanager
def _loopback_allowed() -> Iterator[None]:
    """Context in which Ray accepts 127.0.0.1 as the address of a node, as on macOS, instead of looking up another address."""
    from ray._private import ray_constants

    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _own_signals() -> Iterator[None]:
    """Context that restores the signal handlers of this process, which Ray replaces when it connects.

    A SIGTERM in the meantime, which Ray turns into a SystemExit, is then handled by the restored handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    terminated = False
    try:
        yield
    except SystemExit as stop:
        terminated = stop.code == signal.SIGTERM and callable(before[signal.SIGTERM])
        if not terminated:
            raise
    finally:
        _restore(before)
    if terminated:
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Context in which Ctrl-C and SIGTERM are ignored, so that the cluster is freed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        yield
    finally:
        _restore(before)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # only handlers set by Python can be restored
            signal.signal(number, handler)
