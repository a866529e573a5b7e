"""Forms for people, held to the rule that schemas hold programs to (`core/storable.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django import forms

from gateway_project.core.storable import unstorable

if TYPE_CHECKING:
    _Base = forms.BaseForm
else:
    _Base = object


class _Storable(_Base):
    def full_clean(self) -> None:
        super().full_clean()
        for name, value in list(getattr(self, "cleaned_data", {}).items()):
            if reason := unstorable(value):
                self.add_error(name, f"This {reason}.")


class Form(_Storable, forms.Form):
    """Each value is one that a store takes."""


class ModelForm(_Storable, forms.ModelForm):  # type: ignore[type-arg]
    """The same for the fields of a model, those of JSON as well."""
