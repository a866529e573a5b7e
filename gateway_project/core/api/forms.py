"""Forms for people, held to the rule that schemas hold programs to (`core/storable.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.forms.fields import InvalidJSONInput
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_noop as _

from gateway_project.core.api.fields import NOT_ONE_LINE, is_broken
from gateway_project.core.storable import unstorable

if TYPE_CHECKING:
    _Base = forms.BaseForm
else:
    _Base = object


REFUSALS = (  # what is said of a value, as a sentence for people
    _("This must not hold NUL (U+0000); take it out."),
    _("This holds half of a surrogate pair, which is not text; send whole characters."),
    _("This must not hold an integer beyond 64 bits; send it as text."),
    _("This must not hold an infinite number, or none (NaN); send null."),
    _("This is nested more than 32 levels deep; flatten it."),
    _("This lies beyond the calendar; in UTC it has to be within the years 1 and 9999."),
    _("This must be one line; take out the line breaks."),
)


class _Storable(_Base):
    def full_clean(self) -> None:
        super().full_clean()
        for name, value in list(getattr(self, "cleaned_data", {}).items()):
            if reason := unstorable(value) or self._broken(name, value):
                refusal = f"This {reason}."
                self.add_error(name, gettext(refusal))

    def _broken(self, name: str, value: Any) -> str | None:
        """Of a field of one line, from which a browser sends no second one."""
        field = self.fields.get(name)
        is_of_one_line = field is not None and isinstance(field.widget, forms.TextInput)
        return (
            NOT_ONE_LINE if is_of_one_line and isinstance(value, str) and is_broken(value) else None
        )


class JSONField(forms.JSONField):
    """Django's, which fails over a text that is nested without end, or a number of 5,000 digits,
    as JSON alone does not. What is wrong is shown again as it was typed."""

    def to_python(self, value: Any) -> Any:
        try:
            return super().to_python(value)
        except (RecursionError, ValueError):
            raise forms.ValidationError(self.error_messages["invalid"], "invalid") from None

    def bound_data(self, data: Any, initial: Any) -> Any:
        return initial if self.disabled else data if data is None else InvalidJSONInput(data)


class Form(_Storable, forms.Form):
    """Each value is one that a store takes.

    `ids`: what the ids of its fields look like; another one where two forms of a page have a field
    of one name, or the label of the second would name the first.
    """

    ids: ClassVar[str] = "id_%s"

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("auto_id", self.ids)
        super().__init__(*args, **options)


class _ShownField(forms.BoundField):
    """With what the page showed, which its form sends back, also when the form is shown again:
    Django does that only for values of one part. Sent by a program that left it out, the field is
    compared with what stands now."""

    def __init__(self, form: forms.BaseForm, field: forms.Field, name: str) -> None:
        super().__init__(form, field, name)
        is_left_out = field.hidden_widget().value_omitted_from_data(
            form.data, form.files, self.html_initial_name
        )
        field.show_hidden_initial = not (form.is_bound and is_left_out)

    def as_widget(
        self, widget: Any = None, attrs: Any = None, only_initial: bool = False
    ) -> SafeString:
        if not (only_initial and self.form.is_bound):
            return super().as_widget(widget, attrs, only_initial)
        hidden = self.field.hidden_widget()
        shown = self.form._widget_data_value(hidden, self.html_initial_name)  # type: ignore[attr-defined]
        return hidden.render(self.html_initial_name, shown, {"id": self.html_initial_id})


class EditForm(Form):
    """Of what stands already: only what the person changed is taken, so that what another tab, or
    somebody else, saved since the page was opened stays. Of two who change one field, the last is
    right.
    """

    bound_field_class = _ShownField

    def changes(self) -> dict[str, Any]:
        return {name: self.cleaned_data[name] for name in self.changed_data}


class ModelForm(_Storable, forms.ModelForm):  # type: ignore[type-arg]
    """The same for the fields of a model, those of JSON as well.

    A row that exists is changed in what the person changed, and in nothing else, as by `EditForm`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._before: dict[str, Any] = {}
        if self.instance._state.adding:
            return
        self.bound_field_class = _ShownField
        for column in self.instance._meta.concrete_fields:
            if column.name in self.fields:
                self._before[column.name] = getattr(self.instance, column.attname)

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        meta = self.instance._meta
        for name, value in self._before.items():
            if name not in self.changed_data:
                setattr(self.instance, meta.get_field(name).attname, value)

    def save(self, commit: bool = True) -> Any:
        if not commit or self.errors:
            return super().save(commit)
        self.save_row()
        self._save_m2m()  # type: ignore[attr-defined]
        return self.instance

    def save_row(self) -> None:
        """Insert the row, or write those of its columns that the person changed."""
        if self.instance._state.adding:
            self.instance.save(force_insert=True)
        elif columns := [name for name in self._before if name in self.changed_data]:
            self.instance.save(update_fields=columns)
