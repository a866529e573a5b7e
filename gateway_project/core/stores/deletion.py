"""Deleting what much belongs to: gone for everybody at once, erased behind.

Whoever deletes a row that is `Deletable` sets `deleted_at`, and with it all that lets it act. From
then on its model's `objects` do not find it. `erase` deletes it, children first, in pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from django.apps import apps
from django.db import models

from gateway_project.core.stores.refused import each_alone
from gateway_project.core.stores.sweeps import Round

M = TypeVar("M", bound=models.Model)


class Living(models.Manager[M]):
    """Rows that are not deleted. What refers to one finds it still (`_base_manager`)."""

    def get_queryset(self) -> models.QuerySet[M]:
        return super().get_queryset().filter(deleted_at=None)


class Deletable(models.Model):
    """Its models have `objects` that are `Living`."""

    deleted_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        abstract = True

    def loose_ends(self) -> Iterable[models.QuerySet[Any]]:
        """Rows that belong to it without a foreign key, and go first."""
        return ()


def erase() -> int:
    """Erase what is deleted, as far as a round goes; returns how many are gone."""
    during = Round()
    return sum(each_alone(during.each(_deleted(during.rows)), partial(_erase, during)))


def _deleted(most: int) -> Iterator[Deletable]:
    for model in apps.get_models():
        if issubclass(model, Deletable):
            yield from model._base_manager.exclude(deleted_at=None).order_by("pk")[:most]


def _erase(during: Round, row: Deletable) -> int:
    for loose in row.loose_ends():
        during.delete(loose)
    if during.is_over:
        return 0
    return during.erase(type(row)._base_manager.filter(pk=row.pk))
