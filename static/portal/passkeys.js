// What went wrong with a passkey, in words: allauth's scripts only log it.
"use strict";

document.addEventListener("allauth.error", (event) => {
  event.preventDefault();
  const name = event.detail.exception?.name;
  const words = {
    NotAllowedError: "It was cancelled, or took too long. Nothing was changed: try again.",
    InvalidStateError: "This device has a passkey for your account already.",
    NotSupportedError: "This browser or device has no passkeys. Use another way.",
    SecurityError: "Passkeys need https and this site's own name in the address.",
  };
  const place = document.querySelector("[data-passkey-error]");
  if (!place) return;
  place.textContent = words[name] || "The passkey could not be used. Try again, or use another way.";
  place.hidden = false;
});
