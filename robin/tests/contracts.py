"""What Robin UI demands of each answer, as JSON Schemas.

Like the UI's own checks they refuse null where a field may only be absent, times that do not end in
`Z`, and words that it does not know.
"""

from __future__ import annotations

import jsonschema

PERMISSIONS = [
    "VIEW_DASHBOARD",
    "VIEW_QUEUE",
    "MANAGE_QUEUE",
    "DELETE_QUEUE_ITEMS",
    "VIEW_STORAGE",
    "MANAGE_STORAGE",
    "VIEW_SECURITY",
    "MANAGE_SECURITY",
    "VIEW_ROUTING",
    "MANAGE_ROUTING",
    "VIEW_METRICS",
    "VIEW_LOGS",
    "VIEW_SETTINGS",
    "MANAGE_SERVER_CONFIG",
    "MANAGE_USERS",
    "VIEW_DOMAINS",
    "MANAGE_DOMAINS",
]
ROLES = ["ROLE_ADMIN", "ROLE_USER", "ROLE_READONLY", "ROLE_OPERATOR"]
TEXT = {"type": "string"}
# jsonschema takes true for no number and 1.0 for an integer, as JavaScript does.
COUNT = {"type": "integer", "minimum": 0}
Z = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"}


def shape(required, **optional):
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
    }


def several(item):
    return {"type": "array", "items": item}


def one_of(*words):
    return {"enum": list(words)}


USER = shape(
    {
        "id": {"type": ["string", "number"]},
        "username": TEXT,
        "email": {"type": "string", "pattern": r"^[^@\s]+@[^@\s]+\.[^@\s]+$"},
        "roles": several(one_of(*ROLES)),
    },
    permissions=several(one_of(*PERMISSIONS)),
    firstName=TEXT,
    lastName=TEXT,
    createdAt=Z,
    lastLoginAt=Z,
)
TOKENS = shape(
    {"accessToken": TEXT, "tokenType": TEXT, "expiresIn": {"type": "number", "minimum": 1}},
    refreshToken={"type": ["string", "null"]},
)
LOGIN = shape(
    {"user": USER, "tokens": TOKENS, "permissions": several(one_of(*PERMISSIONS))},
)
REFRESH = shape({"accessToken": TEXT, "expiresIn": {"type": "number", "minimum": 1}})
VERIFY = shape({"valid": {"type": "boolean"}})
QUEUE = shape(
    {
        "items": several(
            shape(
                {
                    "uid": {"type": "string", "minLength": 36},
                    "protocol": TEXT,
                    "mailbox": TEXT,
                    "retryCount": COUNT,
                    "maxRetryCount": {"type": "integer", "minimum": 1},
                    "createTime": {"type": "integer", "minimum": 1_000_000_000_000},
                    "lastRetryTime": COUNT,
                },
                nextRetryTime=COUNT,
                error=TEXT,
                sessionUid=TEXT,
            )
        ),
        "totalCount": COUNT,
        "pageSize": COUNT,
        "pageNumber": COUNT,
    }
)
STORE = shape(
    {
        "path": TEXT,
        "items": several(
            shape(
                {
                    "path": {"type": "string", "pattern": "^/"},
                    "name": TEXT,
                    "type": one_of("file", "directory"),
                    "size": COUNT,
                    "modified": {"type": "integer", "minimum": 1_000_000_000_000},
                },
                permissions=TEXT,
            )
        ),
        "breadcrumbs": several(shape({"name": TEXT, "path": TEXT})),
    }
)
FILE = shape({"path": TEXT, "content": TEXT, "mimeType": TEXT, "size": COUNT})
ENTRY = shape(
    {
        "timestamp": Z,
        "level": one_of("ERROR", "WARN", "INFO", "DEBUG", "TRACE"),
        "logger": TEXT,
        "message": TEXT,
    },
    id=TEXT,
    thread=TEXT,
    stackTrace=TEXT,
    context={"type": "object"},
)
LOGS = shape({"entries": several(ENTRY), "total": COUNT}, hasMore={"type": "boolean"})
LOGGERS = several(TEXT)
HEALTH = shape(
    {
        "status": one_of("UP", "DOWN"),
        "uptime": TEXT,
        "listeners": several(shape({"port": COUNT, "threadPool": {"type": "object"}})),
        "queue": shape(
            {
                "size": COUNT,
                "retryHistogram": {"type": "object", "additionalProperties": COUNT},
            }
        ),
    },
    # It reads `cron` without a look whether it is there.
    scheduler=shape(
        {
            "config": shape({"totalRetries": COUNT, "firstWaitMinutes": COUNT}),
            "cron": shape({"periodSeconds": COUNT}),
        }
    ),
)
METRICS = shape(
    {
        "series": several(
            shape(
                {
                    "metric": one_of(
                        "QUEUE_SIZE",
                        "MESSAGES_SENT",
                        "MESSAGES_RECEIVED",
                        "CONNECTIONS",
                        "CPU_USAGE",
                        "MEMORY_USAGE",
                        "DISK_USAGE",
                    ),
                    "unit": TEXT,
                    "dataPoints": several(shape({"timestamp": Z, "value": {"type": "number"}})),
                }
            )
        ),
        "startTime": Z,
        "endTime": Z,
    }
)
PERCENT = {"type": "number", "minimum": 0, "maximum": 100}
SYSTEM = shape(
    {
        "timestamp": Z,
        "cpu": shape({}, usage=PERCENT, cores=COUNT, loadAverage=several({"type": "number"})),
        "memory": shape(
            {
                "total": {"type": "integer", "minimum": 1},
                "used": COUNT,
                "free": COUNT,
                "usagePercent": PERCENT,
            }
        ),
        "uptime": COUNT,
    }
)
QUEUE_STATS = shape(
    {"timestamp": Z, "queueSize": COUNT, "processing": COUNT, "failed": COUNT, "completed": COUNT},
    throughput={"type": "number", "minimum": 0},
)
SCANNER_STATUS = shape(
    {"status": one_of("UP", "DOWN", "UNKNOWN"), "lastCheck": Z},
    version=TEXT, error=TEXT, uptime=COUNT, scannedTotal=COUNT, spamCount=COUNT, hamCount=COUNT,
)  # fmt: skip
SCANNER_TEST = shape(
    {"success": {"type": "boolean"}, "status": one_of("UP", "DOWN", "TIMEOUT", "ERROR"),
     "message": {"type": "string", "minLength": 5}},
    responseTime={"type": "number"}, details={"type": "object"},
)  # fmt: skip
PROBLEM = shape({"message": {"type": "string", "minLength": 5}, "code": TEXT, "request_id": TEXT})


def holds(schema, answer):
    """Assert that `answer` (parsed JSON) is what the UI takes."""
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(answer, schema, jsonschema.Draft202012Validator)
    _no_null(answer)


def _no_null(value, path=""):
    if isinstance(value, dict):
        for name, inner in value.items():
            if name != "refreshToken":
                _no_null(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            _no_null(inner, f"{path}[]")
    else:
        assert value is not None, f"null at {path}"
