"""`python -m benchmarks.fill_keys STORED ACTIVE FILE`: a gateway with many keys.

Run in the environment of the gateway whose database it fills. Of the STORED keys, ACTIVE are real;
their texts are in FILE, one a line, which is read first when there are some already. The others
have digests that no key has: nobody can use them, and the index has to hold them all the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

import django

WORKSPACE = "bench"
FILLER = """
INSERT INTO accounts_apikey ({names}) SELECT {values}
FROM (SELECT * FROM accounts_apikey LIMIT 1) AS pattern, generate_series(1, %s)
"""
INVENTED = {
    "id": "gen_random_uuid()",
    "key_hash": "md5(random()::text) || md5(random()::text)",
    "last_used_at": "NULL",
}


def main() -> None:
    stored, active, file = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    django.setup()
    from django.db import connection, transaction

    from accounts import services
    from accounts.models import ApiKey, Workspace

    texts = file.read_text().split() if file.exists() else []
    workspace = Workspace.objects.get(slug=WORKSPACE)
    limits = ApiKey.objects.filter(workspace=workspace).values(
        "scopes", "rate_limit_per_minute", "rate_limit_per_day"
    )[0]
    with transaction.atomic():
        for _ in range(active - len(texts)):
            _, text = services.issue_key(workspace, actor=services.Actor("bench"), **limits)
            texts.append(text)
    with connection.cursor() as cursor:
        if (missing := stored - ApiKey.objects.count()) > 0:
            columns = [field.column for field in ApiKey._meta.concrete_fields]
            values = (INVENTED.get(name, f"pattern.{name}") for name in columns)
            sql = FILLER.format(names=", ".join(columns), values=", ".join(values))
            cursor.execute(sql, [missing])
        cursor.execute("VACUUM ANALYZE accounts_apikey")
    file.touch(mode=0o600)
    file.write_text("\n".join(texts[:active]) + "\n")


if __name__ == "__main__":
    main()
