// What went wrong with a passkey, in words: allauth's scripts only log it.
"use strict";

document.addEventListener("allauth.error", (event) => {
  event.preventDefault();
  const { gettext } = window.portal;
  const name = event.detail.exception?.name;
  const words = {
    NotAllowedError: gettext("It was cancelled, or took too long. Nothing was changed: try again."),
    InvalidStateError: gettext("This device has a passkey for your account already."),
    NotSupportedError: gettext("This browser or device has no passkeys. Use another way."),
    SecurityError: gettext("Passkeys need https and this site's own name in the address."),
  };
  const place = document.querySelector("[data-passkey-error]");
  if (!place) return;
  place.textContent = words[name] || gettext("The passkey could not be used. Try again, or use another way.");
  place.hidden = false;
});
