"""The frozen reference: the gateway as its two plans describe it, in FastAPI.

The product was planned as a FastAPI service and is written in Django. This file is what the
plans would have given, written as a careful FastAPI engineer would: FastAPI and Pydantic on
uvicorn (uvloop, httptools), API keys hashed with SHA-256 in PostgreSQL and cached in Redis for
60 s, counters per minute and day in Redis, the verdict cache, an ``httpx.AsyncClient`` with the
plans' pool of 100/20, pybreaker, multiprocess Prometheus metrics, a structlog JSON line a
request, security headers, CORS, GZip, and a usage row a request written after the answer.

It is **frozen**: the ratios in the documentation count against this code with the versions
pinned in ``requirements.txt``, so it must not drift with the gateway. Change it only to fix a
defect or to add the counterpart of a new row, and measure every row again when you do.

Choices that favour the reference: plain ASGI middleware instead of ``BaseHTTPMiddleware``, one
Redis round trip for both counters, a Core insert in autocommit mode (one PostgreSQL round trip),
orjson for the log line, the verdict stored and the usage row written after the answer.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import secrets
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import httpx
import orjson
import structlog
from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.security import APIKeyHeader
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from pybreaker import CircuitBreaker, CircuitBreakerError, CircuitBreakerListener
from pydantic import BaseModel, Field, HttpUrl, field_validator
from redis.asyncio import Redis
from sqlalchemy import ForeignKey, String, func, insert, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEY_CACHE_SECONDS = 60
VERDICT_CACHE_SECONDS = 300
CONFIG_CACHE_SECONDS = 300
USER_PER_MINUTE = 10_000_000
DEFAULT_THRESHOLD = 0.6
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
}

# --- Stores --------------------------------------------------------------------------------------


def _database_url() -> str:
    """``DATABASE_URL`` with the driver that SQLAlchemy needs for asyncio."""
    return "postgresql+asyncpg://" + os.environ["DATABASE_URL"].partition("://")[2]


engine = create_async_engine(_database_url(), pool_size=10, max_overflow=10)
# A usage row is one statement: without BEGIN and COMMIT it is one round trip instead of three.
usage_engine = engine.execution_options(isolation_level="AUTOCOMMIT")
new_session = async_sessionmaker(engine, expire_on_commit=False)
redis = Redis.from_url(os.environ["REDIS_URL"])
http: httpx.AsyncClient  # made in `lifespan`, inside the worker's event loop


class Base(DeclarativeBase):
    pass


class ApiKey(Base):
    __tablename__ = "api_keys"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str | None] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]
    is_active: Mapped[bool] = mapped_column(default=True)
    rate_limit_per_minute: Mapped[int] = mapped_column(default=60)
    rate_limit_per_day: Mapped[int] = mapped_column(default=10_000)


class UsageLog(Base):
    __tablename__ = "usage_logs"
    id: Mapped[int] = mapped_column(primary_key=True)
    api_key_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("api_keys.id"))
    endpoint: Mapped[str | None] = mapped_column(String(50))
    request_size: Mapped[int | None]
    response_time_ms: Mapped[int | None]
    is_malicious: Mapped[bool | None]
    confidence: Mapped[float | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


# --- Logs and metrics ----------------------------------------------------------------------------

structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(serializer=orjson.dumps),
    ],
    wrapper_class=structlog.make_filtering_bound_logger("info"),
    logger_factory=structlog.BytesLoggerFactory(),
    cache_logger_on_first_use=True,
)
log = structlog.get_logger()

REQUESTS = Counter("gateway_requests_total", "Requests.", ["method", "endpoint", "status"])
DURATION = Histogram("gateway_request_duration_seconds", "Duration.", ["method", "endpoint"])
LIMITED = Counter("gateway_rate_limit_exceeded_total", "Refused by a limit.", ["policy"])
CACHE = Counter("gateway_cache_requests_total", "Cache look-ups.", ["cache", "result"])
BREAKER_STATE = Gauge(
    "gateway_circuit_breaker_state", "0 closed, 1 half-open, 2 open.", ["service"],
    multiprocess_mode="livemax",
)  # fmt: skip


class BreakerEvents(CircuitBreakerListener):
    def state_change(self, cb: CircuitBreaker, old_state: Any, new_state: Any) -> None:
        BREAKER_STATE.labels("engine").set({"closed": 0, "half-open": 1}.get(new_state.name, 2))
        log.warning("breaker_state_changed", service="engine", state=new_state.name)


breaker = CircuitBreaker(fail_max=5, reset_timeout=30, listeners=[BreakerEvents()])


class ObservabilityMiddleware:
    """Request id, security headers, metrics and the access log line of every request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        given = next((v for k, v in scope["headers"] if k == b"x-request-id"), b"")
        request_id = given.decode("latin-1")[:128] or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                self.record(scope, message["status"], time.perf_counter() - started)
            await send(message)

        await self.app(scope, receive, send_with_headers)

    @staticmethod
    def record(scope: Scope, status: int, seconds: float) -> None:
        endpoint = getattr(scope.get("route"), "path", "unmatched")
        REQUESTS.labels(scope["method"], endpoint, str(status)).inc()
        DURATION.labels(scope["method"], endpoint).observe(seconds)
        log.info(
            "request", method=scope["method"], path=scope["path"], route=endpoint, status=status,
            duration_ms=round(seconds * 1000, 2),
        )  # fmt: skip


# --- Requests and answers ------------------------------------------------------------------------


class DetectionConfig(BaseModel):
    confidence_threshold: float = Field(DEFAULT_THRESHOLD, ge=0, le=1)
    include_reasoning: bool = True


class DetectionRequest(BaseModel):
    text: str = Field(min_length=1, max_length=10_000)
    config: DetectionConfig = DetectionConfig()
    webhook_url: HttpUrl | None = None
    metadata: dict[str, Any] | None = None

    @field_validator("text")
    @classmethod
    def validate_text_content(cls, value: str) -> str:
        if "\x00" in value:
            raise ValueError("Text contains invalid characters")
        return value


class EngineVerdict(BaseModel):
    is_malicious: bool
    confidence: float
    threat_types: list[str]
    processing_time_ms: int
    reason: str | None = None
    endpoint: str | None = None


class DetectionResponse(EngineVerdict):
    request_id: str
    cached: bool


class KeyRecord(BaseModel):
    id: uuid.UUID
    is_active: bool
    rate_limit_per_minute: int
    rate_limit_per_day: int


# --- Authentication and limits -------------------------------------------------------------------

api_key_header = APIKeyHeader(name="X-API-Key", auto_error=False)


async def verify_api_key(key: str) -> KeyRecord | None:
    digest = hashlib.sha256(key.encode()).hexdigest()
    if cached := await redis.get(f"api_key:{digest}"):
        return KeyRecord.model_validate_json(cached)
    async with new_session() as session:
        row = await session.scalar(select(ApiKey).where(ApiKey.key_hash == digest))
    if row is None:
        return None
    record = KeyRecord.model_validate(row, from_attributes=True)
    await redis.set(f"api_key:{digest}", record.model_dump_json(), ex=KEY_CACHE_SECONDS)
    return record


async def check_rate_limit(key: KeyRecord, response: Response) -> None:
    now = int(time.time())
    minute, day = f"limit:{key.id}:m:{now // 60}", f"limit:{key.id}:d:{now // 86_400}"
    async with redis.pipeline(transaction=False) as pipe:
        pipe.incr(minute).expire(minute, 60).incr(day).expire(day, 86_400)
        in_minute, _, in_day, _ = await pipe.execute()
    remaining = key.rate_limit_per_minute - in_minute
    headers = {
        "X-RateLimit-Limit": str(key.rate_limit_per_minute),
        "X-RateLimit-Remaining": str(max(remaining, 0)),
        "X-RateLimit-Reset": str(60 - now % 60),
    }
    if remaining < 0 or in_day > key.rate_limit_per_day:
        LIMITED.labels("minute" if remaining < 0 else "day").inc()
        headers["Retry-After"] = headers["X-RateLimit-Reset"]
        raise HTTPException(429, "Rate limit exceeded", headers)
    response.headers.update(headers)


async def authenticated(
    response: Response, key: Annotated[str | None, Depends(api_key_header)]
) -> KeyRecord:
    if not key:
        raise HTTPException(401, "API key required")
    record = await verify_api_key(key)
    if record is None or not record.is_active:
        raise HTTPException(401, "Invalid API key")
    await check_rate_limit(record, response)
    return record


# --- Detection -----------------------------------------------------------------------------------


async def ask_engine(text: str, threshold: float) -> EngineVerdict:
    try:
        # `call_async` of pybreaker needs Tornado. The context manager checks the state on entry
        # and records the outcome on exit, which is right for a coroutine too.
        with breaker.calling():
            answer = await http.post(
                "/v1/detect",
                json={"text": text, "config": {"confidence_threshold": threshold}},
            )
            answer.raise_for_status()
            return EngineVerdict.model_validate_json(answer.content)
    except (CircuitBreakerError, httpx.HTTPError) as error:
        raise HTTPException(503, "Detection unavailable", {"Retry-After": "30"}) from error


async def record_usage(row: dict[str, Any], cache_key: str, verdict: EngineVerdict | None) -> None:
    """Runs after the answer was sent: the usage row, and the verdict when it is a new one."""
    if verdict is not None:
        await redis.set(cache_key, verdict.model_dump_json(), ex=VERDICT_CACHE_SECONDS)
    async with usage_engine.connect() as connection:
        await connection.execute(insert(UsageLog), row)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    global http
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=20)
    http = httpx.AsyncClient(base_url=os.environ["ENGINE_URL"], limits=limits, timeout=30)
    BREAKER_STATE.labels("engine").set(0)
    yield
    await http.aclose()
    await redis.aclose()
    await engine.dispose()


app = FastAPI(title="Gateway (frozen reference)", lifespan=lifespan)
app.add_middleware(GZipMiddleware, minimum_size=1000)
app.add_middleware(
    CORSMiddleware, allow_origins=["http://localhost:4200"], allow_credentials=True,
    allow_methods=["GET", "POST", "PUT", "DELETE"],
    allow_headers=["Authorization", "Content-Type", "X-API-Key"],
)  # fmt: skip
app.add_middleware(ObservabilityMiddleware)


@app.post("/v1/detect")
async def detect(
    body: DetectionRequest,
    request: Request,
    background: BackgroundTasks,
    key: Annotated[KeyRecord, Depends(authenticated)],
) -> DetectionResponse:
    started = time.perf_counter()
    threshold = body.config.confidence_threshold
    digest = hashlib.sha256(f"{threshold}:{body.text}".encode()).hexdigest()
    cache_key = f"verdict:{digest}"
    cached = await redis.get(cache_key)
    CACHE.labels("verdict", "hit" if cached else "miss").inc()
    if cached:
        verdict = EngineVerdict.model_validate_json(cached)
    else:
        verdict = await ask_engine(body.text, threshold)
    elapsed_ms = round((time.perf_counter() - started) * 1000)
    usage = {
        "api_key_id": key.id,
        "endpoint": "/v1/detect",
        "request_size": len(body.text),
        "response_time_ms": elapsed_ms,
        "is_malicious": verdict.is_malicious,
        "confidence": verdict.confidence,
    }
    background.add_task(record_usage, usage, cache_key, None if cached else verdict)
    return DetectionResponse(
        request_id=request.state.request_id,
        is_malicious=verdict.is_malicious,
        confidence=verdict.confidence,
        threat_types=verdict.threat_types,
        processing_time_ms=elapsed_ms,
        reason=verdict.reason if body.config.include_reasoning else None,
        endpoint=verdict.endpoint,
        cached=cached is not None,
    )


# --- Robin ---------------------------------------------------------------------------------------


def current_user(authorization: Annotated[str, Header()] = "") -> str:
    """The subject of an HS256 token (RFC 7519), checked by hand: no library is quicker."""
    signed, _, signature = authorization.removeprefix("Bearer ").rpartition(".")
    wanted = hmac.digest(os.environ["JWT_SECRET"].encode(), signed.encode(), "sha256")
    if not hmac.compare_digest(_base64url(wanted), signature.encode()):
        raise HTTPException(401, "Invalid token")
    claims = orjson.loads(base64.urlsafe_b64decode(signed.partition(".")[2] + "=="))
    if claims["exp"] < time.time() or "ROLE_ADMIN" not in claims["roles"]:
        raise HTTPException(401, "Invalid token")
    return claims["sub"]


def _base64url(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def make_token() -> str:
    claims = {"sub": "bench", "roles": ["ROLE_ADMIN"], "exp": int(time.time()) + 36_000}
    signed = b".".join(
        _base64url(orjson.dumps(p)) for p in ({"alg": "HS256", "typ": "JWT"}, claims)
    )
    signature = hmac.digest(os.environ["JWT_SECRET"].encode(), signed, "sha256")
    return f"{signed.decode()}.{_base64url(signature).decode()}"


async def check_user_limit(response: Response, user: Annotated[str, Depends(current_user)]) -> None:
    now = int(time.time())
    minute = f"limit:user:{user}:m:{now // 60}"
    async with redis.pipeline(transaction=False) as pipe:
        in_minute, _ = await pipe.incr(minute).expire(minute, 60).execute()
    if in_minute > USER_PER_MINUTE:
        LIMITED.labels("user").inc()
        raise HTTPException(429, "Rate limit exceeded", {"Retry-After": str(60 - now % 60)})
    response.headers["X-RateLimit-Remaining"] = str(USER_PER_MINUTE - in_minute)


async def ask_robin(path: str) -> bytes:
    try:
        with breaker.calling():
            answer = await http.get(path)
            answer.raise_for_status()
            return answer.content
    except (CircuitBreakerError, httpx.HTTPError) as error:
        raise HTTPException(503, "Robin unavailable", {"Retry-After": "30"}) from error


@app.get("/api/v1/config", dependencies=[Depends(check_user_limit)])
async def config() -> Response:
    content = await redis.get("robin:config")
    CACHE.labels("config", "hit" if content else "miss").inc()
    if content is None:
        content = await ask_robin("/stub/config")
        await redis.set("robin:config", content, ex=CONFIG_CACHE_SECONDS)
    return Response(content, media_type="application/json")


@app.get("/api/v1/queue/json", dependencies=[Depends(check_user_limit)])
async def queue(page: int = 0, size: int = 50) -> Response:
    content = await ask_robin(f"/stub/queue?page={page}&size={size}")
    return Response(content, media_type="application/json")


@app.get("/health")
async def health() -> dict[str, Any]:
    await redis.ping()
    async with new_session() as session:
        await session.scalar(select(func.now()))
    return {"status": "up", "breakers": {"engine": breaker.current_state}}


@app.get("/metrics")
def metrics() -> Response:
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")


async def create_key(per_minute: int, per_day: int) -> str:
    """Make the tables and one API key; returns the key itself (only its hash is stored)."""
    key = f"pid_{secrets.token_urlsafe(24)}"
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        values = {"key_hash": hashlib.sha256(key.encode()).hexdigest(), "name": "bench"}
        limits = {"rate_limit_per_minute": per_minute, "rate_limit_per_day": per_day}
        await connection.execute(insert(ApiKey).values(**values, **limits))
    await engine.dispose()
    return key


if __name__ == "__main__":  # python app.py PER_MINUTE PER_DAY | python app.py token
    if sys.argv[1] == "token":
        print(make_token())
    else:
        print(asyncio.run(create_key(int(sys.argv[1]), int(sys.argv[2]))))
