// The list of items: how many are chosen, and buttons that are there when there is something to act on.
"use strict";

(() => {
  const { gettext, number } = window.portal;
  const form = document.querySelector("[data-chooser]");
  const said = form?.querySelector("[data-chosen]");
  if (!said) return; // a role that looks
  const boxes = [...form.querySelectorAll("input[name=uid]")];
  const all = form.querySelector("[data-choose-all]");
  const buttons = form.querySelectorAll("button[name=action]");

  function show() {
    const count = boxes.filter((box) => box.checked).length;
    said.textContent = count ? gettext("%(n)s chosen", { n: number(count) }) : gettext("Choose items to act on.");
    for (const button of buttons) button.disabled = count === 0;
    all.checked = count === boxes.length;
    all.indeterminate = count > 0 && count < boxes.length;
  }

  all.hidden = false;
  all.addEventListener("change", () => {
    for (const box of boxes) box.checked = all.checked;
    show();
  });
  form.addEventListener("change", show);
  addEventListener("pageshow", show); // coming back, what was chosen still is
})();
