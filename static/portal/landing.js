// The box on the first page: sends the text, draws the verdict. Without it the form works as well.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector("[data-try]");
  if (!form) return;
  const { element, gettext, number } = window.portal;
  const box = form.closest("#try");
  const part = (name) => box.querySelector(`[data-${name}]`);
  const colours = { flag: "bad", review: "warn" };

  function show(verdict) {
    part("decision").textContent = verdict.decision;
    part("decision").className = `badge ${colours[verdict.decision] || "good"}`;
    part("confidence").textContent = number(verdict.confidence, 2);
    part("threshold").textContent = number(verdict.threshold);
    part("time").textContent = `${number(verdict.milliseconds)} ms`;
    part("reason").textContent = verdict.reason || gettext("Nothing in it looks like an attack.");
    part("pieces").replaceChildren(...verdict.pieces.map((piece) => (
      piece.is_marked ? element("mark", piece.text) : document.createTextNode(piece.text)
    )));
    part("answer").hidden = false;
    part("problem").hidden = true;
  }

  function fail(words) {
    part("problem").textContent = words;
    part("problem").hidden = false;
    part("answer").hidden = true;
  }

  async function send() {
    const button = part("send");
    button.disabled = true;
    try {
      const answer = await fetch("/", {
        method: "POST",
        headers: { Accept: "application/json" },
        body: new URLSearchParams({ text: form.elements.text.value }),
        credentials: "omit",
      });
      const body = await answer.json();
      if (answer.ok) show(body);
      else fail(body.errors?.length ? body.errors[0].message : body.detail);
    } catch {
      fail(gettext("The gateway cannot be reached. Look at your connection, then try again."));
    } finally {
      button.disabled = false;
    }
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
  form.addEventListener("click", (event) => {
    const button = event.target.closest("[data-example]");
    if (!button) return;
    form.elements.text.value = button.dataset.example;
    send();
  });
});
