"""The health check of the containers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from services.shared.healthcheck import main


@pytest.fixture
def health() -> Iterator[tuple[HealthServicer, int]]:
    servicer = HealthServicer()
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield servicer, port
    finally:
        server.stop(None).wait()


def test_a_service_that_serves_is_healthy(health: tuple[HealthServicer, int]) -> None:
    servicer, port = health
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)

    assert main([f"127.0.0.1:{port}"]) == 0


def test_a_service_that_drains_is_not_healthy(health: tuple[HealthServicer, int]) -> None:
    servicer, port = health
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)

    assert main([f"127.0.0.1:{port}"]) == 1


def test_the_address_comes_from_the_service_s_own_setting(
    health: tuple[HealthServicer, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    servicer, port = health
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    monkeypatch.setenv("HOLDFAST_LISTEN", f"0.0.0.0:{port}")

    assert main([]) == 0


def test_nobody_there_is_not_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert main([f"127.0.0.1:{unused.getsockname()[1]}"]) == 1

    assert "UNAVAILABLE" in capsys.readouterr().err


def test_without_an_address_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 64
    assert "HOLDFAST_LISTEN" in capsys.readouterr().err
